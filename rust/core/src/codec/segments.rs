//! Segments: the pieces of a frame at which decoding can begin.

use std::ops::Range;

/// Values of a segment, at most, where rows are not larger.
pub(super) const SEGMENT: usize = 512;
/// Rows longer than a segment are cut at multiples of this.
const STEP: usize = 8;

/// How the values of a frame are cut: short rows are taken together as far as they fit, long rows are cut into pieces of
/// about the same length, none of which reaches into the next row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Values of the frame.
    values: usize,
    /// Values after which cutting begins anew: a row, or the rows of one segment.
    period: usize,
    /// Values of a segment; the last one of a period may have fewer.
    length: usize,
    per_period: usize,
}

impl Segments {
    /// Segments of `values` values in rows of `row_values`, both at least 1.
    pub(super) fn new(values: usize, row_values: usize) -> Self {
        let row_values = row_values.max(1);
        if row_values < SEGMENT {
            let length = SEGMENT / row_values * row_values;
            return Self { values, period: length, length, per_period: 1 };
        }
        let pieces = row_values.div_ceil(SEGMENT);
        let length = row_values.div_ceil(pieces).next_multiple_of(STEP);
        Self { values, period: row_values, length, per_period: row_values.div_ceil(length) }
    }

    /// How many there are.
    pub(super) fn count(self) -> usize {
        self.segment_of(self.values.saturating_sub(1)) + usize::from(self.values > 0)
    }

    /// The values of a segment.
    pub(super) fn range(self, segment: usize) -> Range<usize> {
        let (period, piece) = self.place(segment);
        let first = period * self.period;
        let end = (first + self.period).min(self.values);
        (first + piece * self.length).min(end)..(first + (piece + 1) * self.length).min(end)
    }

    /// Segments one after the other, without the divisions of [`Self::range`].
    pub(super) fn pieces(self, segments: Range<usize>) -> impl Iterator<Item = Piece> {
        let (mut start, mut channel) = (self.start(segments.start), self.channel(segments.start));
        segments.map(move |_| {
            let end = (start + self.length.min(self.period - channel)).min(self.values);
            let piece = Piece { values: start..end, channel };
            start = end;
            channel = if channel + self.length < self.period { channel + self.length } else { 0 };
            piece
        })
    }

    /// Where a segment begins; after the last one, where the values end.
    pub(super) fn start(self, segment: usize) -> usize {
        self.range(segment).start
    }

    /// Values after which cutting begins anew: whole rows.
    pub(super) fn period(self) -> usize {
        self.period
    }

    /// Segments of a period.
    pub(super) fn per_period(self) -> usize {
        self.per_period
    }

    /// Values of a segment, at most.
    pub(super) fn longest(self) -> usize {
        self.length
    }

    /// The segment of a value.
    pub(super) fn segment_of(self, value: usize) -> usize {
        if self.per_period == 1 {
            return value / self.period;
        }
        value / self.period * self.per_period + value % self.period / self.length
    }

    /// The segments that have some of these values.
    pub(super) fn covering(self, values: &Range<usize>) -> Range<usize> {
        if values.is_empty() {
            return 0..0;
        }
        self.segment_of(values.start)..self.segment_of(values.end - 1) + 1
    }

    /// The period of a segment, and which of its segments that is. To read one row is so short that divisions count.
    fn place(self, segment: usize) -> (usize, usize) {
        if self.per_period == 1 { (segment, 0) } else { (segment / self.per_period, segment % self.per_period) }
    }

    /// Where a segment's channels begin in the parameters of a period.
    pub(super) fn channel(self, segment: usize) -> usize {
        self.place(segment).1 * self.length
    }

    /// Parameters of channels, as many as a period has values.
    pub(super) fn tile<T: Copy>(row_values: usize, of_channels: &[T]) -> Vec<T> {
        let period = Self::new(1, row_values).period;
        of_channels.iter().copied().cycle().take(if of_channels.is_empty() { 0 } else { period }).collect()
    }
}

/// A segment: its values, and where its channels begin in the parameters of a period.
pub(super) struct Piece {
    pub(super) values: Range<usize>,
    pub(super) channel: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_whole_rows_or_pieces_of_one_and_cover_every_value() {
        for row_values in [1, 3, 31, 128, 384, 511, 512, 513, 1000, 4096, 12289] {
            for rows in [1, 2, 7, 170, 171] {
                let segments = Segments::new(rows * row_values, row_values);
                let mut next = 0;
                for first in [0, segments.count() / 2] {
                    for (segment, piece) in (first..).zip(segments.pieces(first..segments.count())) {
                        assert_eq!((piece.values, piece.channel), (segments.range(segment), segments.channel(segment)));
                    }
                }
                for segment in 0..segments.count() {
                    let range = segments.range(segment);
                    assert!(
                        range.start == next && !range.is_empty() && range.len() <= SEGMENT,
                        "{row_values} {range:?}"
                    );
                    let (first, last) = (range.start / row_values, (range.end - 1) / row_values);
                    assert!(
                        first == last || range.start.is_multiple_of(row_values) && range.end.is_multiple_of(row_values)
                    );
                    assert_eq!(segments.channel(segment) % row_values, range.start % row_values);
                    assert_eq!([segments.segment_of(range.start), segments.segment_of(range.end - 1)], [segment; 2]);
                    assert_eq!(segments.covering(&range), segment..segment + 1);
                    next = range.end;
                }
                assert_eq!(next, rows * row_values);
                assert_eq!(segments.covering(&(0..next)), 0..segments.count());
            }
        }
        assert_eq!(Segments::new(0, 5).count(), 0);
    }

    #[test]
    fn parameters_are_repeated_for_each_row_of_a_segment() {
        assert_eq!(Segments::tile(3, &[1, 2, 3]).len(), 510);
        assert_eq!(Segments::tile(3, &[1, 2, 3])[3..7], [1, 2, 3, 1]);
        assert_eq!(Segments::tile(700, &[7; 700]).len(), 700);
        assert!(Segments::tile::<u8>(3, &[]).is_empty());
    }
}
