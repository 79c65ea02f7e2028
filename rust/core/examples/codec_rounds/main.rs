//! Times the codecs on real activations, one round at a time, so that `benches/codec.py` can let the rounds take turns
//! with those of another program. Nothing is encoded or decoded before it is known to come back bit for bit.
//!
//! `codec_rounds FOLDER` takes a command a line and answers each with a line of JSON:
//!
//! | command | answer |
//! |---|---|
//! | `load GROUP DTYPE whole\|texts all\|residual THREADS KEYS` | bytes of the activations that are now worked on |
//! | `kernels` | the names of what there is on this machine |
//! | `sizes CODEC` | for each activation its bytes, raw and stored, frames, and those of its model |
//! | `encode CODEC KERNEL reused\|fresh PASSES` | seconds a pass |
//! | `decode CODEC KERNEL reused\|fresh PASSES` | seconds a pass |
//! | `copy reused\|fresh` | seconds |
//! | `read CODEC KERNEL layers\|all\|top plain\|checked COUNT SEED` | seconds a row, of about COUNT single rows |
//!
//! `whole` takes each activation as one piece, `texts` each of its texts. `residual` leaves out what is no residual
//! stream. KEYS is the key distance of `archive`. `reused` writes into one buffer of a frame, again and again; `fresh`
//! allocates the output of each piece inside the time, and frees it. Rows are read in random order: of one activation
//! after the other, of all at once, or of the top layer of a chain.

mod coding;
mod data;
mod rows;
mod work;

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use actstore::codec::{Codec, Kernel};
use serde_json::{Value, json};

use coding::Coding;
use data::{Choice, Job};
use rows::Reader;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let folder = std::env::args_os().nth(1).ok_or("codec_rounds FOLDER")?;
    let mut bench = Bench { folder: PathBuf::from(folder), job: None, codings: Vec::new() };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = bench.answer(&words).unwrap_or_else(|error| json!({ "error": format!("`{line}`: {error}") }));
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

struct Bench {
    folder: PathBuf,
    job: Option<Job>,
    codings: Vec<Coding>,
}

impl Bench {
    fn answer(&mut self, words: &[&str]) -> Outcome<Value> {
        match *words {
            ["kernels"] => Ok(kernels().map(Kernel::name).collect()),
            ["load", group, dtype, cut, points, threads, keys] => {
                let choice = Choice { group, dtype, texts: cut == "texts", residual: points == "residual" };
                self.codings.clear();
                let job = self.job.insert(Job::load(&self.folder, &choice, threads.parse()?, keys.parse()?)?);
                Ok(json!(job.streams.iter().map(|stream| stream.bytes.len()).sum::<usize>()))
            }
            ["sizes", codec] => {
                let (job, coding) = self.coding(codec)?;
                coding.sizes(job)
            }
            ["encode", codec, kernel, buffers, passes] => {
                let ((job, coding), kernel, fresh) = (self.coding(codec)?, find(kernel)?, buffers == "fresh");
                job.timed(&mut coding.parts, passes.parse()?, |part| job.encode(&coding.scheme, kernel, part, fresh))
            }
            ["decode", codec, kernel, buffers, passes] => {
                let ((job, coding), kernel, fresh) = (self.coding(codec)?, find(kernel)?, buffers == "fresh");
                job.timed(&mut coding.parts, passes.parse()?, |part| job.decode(&coding.scheme, kernel, part, fresh))
            }
            ["copy", buffers] => {
                let (job, coding) = self.coding("raw")?;
                job.timed(&mut coding.parts, 1, |part| job.copy(&coding.scheme, part, buffers == "fresh"))
            }
            ["read", codec, kernel, order, check, count, seed] => {
                let (job, coding) = self.coding(codec)?;
                let part = coding.parts.first().ok_or("no data")?;
                let reader = Reader { scheme: &coding.scheme, kernel: find(kernel)?, part, check: check == "checked" };
                job.read(&reader, order, count.parse()?, seed.parse()?)
            }
            _ => Err("no such command".into()),
        }
    }

    /// The work, and its data in this codec: encoded, and checked, when first asked for.
    fn coding(&mut self, codec: &str) -> Outcome<(&Job, &mut Coding)> {
        let job = self.job.as_ref().ok_or("nothing is loaded")?;
        let codec = Codec::ALL.iter().copied().find(|one| one.name() == codec).ok_or("no such codec")?;
        let known = self.codings.iter().position(|coding| coding.scheme.codec == codec);
        let index = known.unwrap_or(self.codings.len());
        if known.is_none() {
            self.codings.push(Coding::new(job, codec)?);
        }
        Ok((job, self.codings.get_mut(index).ok_or("no such coding")?))
    }
}

fn kernels() -> impl Iterator<Item = Kernel> {
    let fast = Kernel::detect();
    [Kernel::PORTABLE].into_iter().chain(fast.is_avx2().then_some(fast))
}

fn find(kernel: &str) -> Outcome<Kernel> {
    let found = kernels().find(|one| one.name() == kernel);
    Ok(found.ok_or("this machine does not run such a kernel")?)
}

fn at<T>(items: &[T], index: usize) -> Outcome<&T> {
    Ok(items.get(index).ok_or("an index beyond its list")?)
}
