//! Which instructions the inner loops of the codecs are compiled for. The bytes are the same with all of them.

/// Instructions that are there on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// Those that every machine has.
    pub const PORTABLE: Self = Self(Level::Portable);

    /// The best that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
        {
            return Self(Level::Avx2);
        }
        Self::PORTABLE
    }

    /// Says that `bytes` will be read soon.
    #[inline(always)]
    pub(super) fn fetch(self, bytes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            super::simd::fetch(bytes);
        }
    }

    /// Runs `work`, which is compiled for these instructions as far as it is inlined.
    #[inline(always)]
    pub(super) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        if self.is_avx2() {
            return super::simd::run(self, work);
        }
        work()
    }

    /// Whether AVX2, BMI and LZCNT were found.
    pub fn is_avx2(self) -> bool {
        self != Self::PORTABLE
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        if self.is_avx2() { "avx2" } else { "portable" }
    }
}
