//! Activations that are encoded given the layer below: frame by frame, each chain of layers from its first one up, so that
//! no frame is decoded twice for layers that are read together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::{
    Piece, Request, activation_of, check_frame, coded, frame_of, frame_row_count, frame_starts, named, pieces,
};
use crate::codec::{Coded, Encoding, Model, decode};
use crate::error::Result;
use crate::format::{Activation, EntryHeader, malformed, size};
use crate::store::Stored;

/// The activations of an entry in chains, each after the one that it is encoded given; most are alone.
pub fn chains(header: &EntryHeader) -> Vec<Vec<usize>> {
    let mut chains: Vec<Vec<usize>> = Vec::new();
    let mut chain_of: Vec<usize> = Vec::with_capacity(header.activations.len());
    for (index, activation) in header.activations.iter().enumerate() {
        let chain = activation.below.and_then(|below| chain_of.get(below).copied()).unwrap_or_else(|| {
            chains.push(Vec::new());
            chains.len() - 1
        });
        chain_of.push(chain);
        chains.get_mut(chain).into_iter().for_each(|chain| chain.push(index));
    }
    chains
}

/// Decodes the activations of a chain, frame by frame, in the memory of two frames: `f` gets the place in the chain and
/// the rows.
pub fn decode_frames(entry: &dyn Stored, chain: &[usize], mut f: impl FnMut(usize, &[u8])) -> Result<()> {
    let links = links(entry, chain)?;
    let Some(first) = links.first().map(|link| link.activation) else { return Ok(()) };
    let mut buffers = Buffers::default();
    for frame in 0..first.frames.len() {
        let whole = 0..frame_row_count(first, frame);
        buffers.decode(entry, &links, frame, &[whole], |position, rows| {
            f(position, rows);
            Ok(())
        })?;
    }
    Ok(())
}

/// The chain that ends with an activation.
fn chain_to(header: &EntryHeader, index: usize) -> Vec<usize> {
    let below = |index: &usize| header.activations.get(*index)?.below;
    let mut chain: Vec<_> = std::iter::successors(Some(index), below).collect();
    chain.reverse();
    chain
}

/// An activation of a chain.
struct Link<'a> {
    index: usize,
    activation: &'a Activation,
    model: Option<Arc<Model>>,
    /// Where each frame begins in the chunk.
    starts: Vec<u64>,
}

fn links<'a>(entry: &'a dyn Stored, chain: &[usize]) -> Result<Vec<Link<'a>>> {
    let link = |&index: &usize| {
        let activation = activation_of(entry, index)?;
        let model = activation.model.map(|id| entry.model(&id)).transpose()?;
        Ok(Link { index, activation, model, starts: frame_starts(activation) })
    };
    chain.iter().map(link).collect()
}

/// The rows of a frame of one layer, and those of the layer below.
#[derive(Default)]
struct Buffers {
    rows: Vec<u8>,
    below: Vec<u8>,
}

impl Buffers {
    /// Decodes rows of one frame of each activation of a chain; `f` gets the place in the chain and the rows.
    fn decode(
        &mut self,
        entry: &dyn Stored,
        links: &[Link<'_>],
        frame: usize,
        ranges: &[Range<u64>],
        mut f: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let rows: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        for (position, link) in links.iter().enumerate() {
            let Self { rows: out, below } = &mut *self;
            out.resize(size(rows * link.activation.layout.row_bytes())?, 0);
            let stored = frame_of(link.activation, frame)?;
            let start = link.starts.get(frame).copied().unwrap_or_default();
            entry
                .with_bytes(link.index, start, stored.length as usize, &mut |bytes| {
                    check_frame(stored, bytes)?;
                    let below = (position > 0).then_some(below.as_slice());
                    let frame = coded(link.activation, frame, stored, bytes, link.model.as_deref());
                    decode(&Coded { below, ..frame }, ranges, out)
                })
                .map_err(|e| named(e, frame, entry, link.activation))?;
            f(position, out)?;
            std::mem::swap(&mut self.rows, &mut self.below);
        }
        Ok(())
    }
}

/// One frame of each activation of a chain, and where rows of some of them go.
pub(super) struct Column<'a> {
    entry: Arc<dyn Stored>,
    chain: Arc<Vec<usize>>,
    frame: usize,
    /// By place in the chain, which may go on above them.
    wanted: Vec<(usize, Piece<'a>)>,
}

/// Which chain of which entry: the entry lives as long as requests for it.
type Id = (*const (), usize);

/// The columns of requests for activations that are encoded given the layer below, and of the layers below them; and the
/// requests for others.
pub(super) fn columns(requests: Vec<Request<'_>>) -> Result<(Vec<Column<'_>>, Vec<Request<'_>>)> {
    let is_given_below = |request: &Request<'_>| {
        request.entry.header().activations.get(request.activation).is_some_and(|activation| activation.below.is_some())
    };
    if !requests.iter().any(is_given_below) {
        return Ok((Vec::new(), requests));
    }
    let chain = |request: &Request<'_>| chain_to(request.entry.header(), request.activation);
    let id = |request: &Request<'_>, chain: &[usize]| -> Id {
        (Arc::as_ptr(&request.entry).cast::<()>(), chain.first().copied().unwrap_or_default())
    };
    // The longest of each: the others are its beginnings.
    let mut longest: BTreeMap<Id, Arc<Vec<usize>>> = BTreeMap::new();
    for request in &requests {
        let chain = chain(request);
        let known = longest.entry(id(request, &chain)).or_default();
        if chain.len() > known.len() {
            *known = Arc::new(chain);
        }
    }
    longest.retain(|_, chain| chain.len() > 1);
    let (mut columns, mut alone): (BTreeMap<(Id, usize), Column<'_>>, Vec<_>) = Default::default();
    for request in requests {
        let own = chain(&request);
        let id = id(&request, &own);
        let Some(chain) = longest.get(&id) else {
            alone.push(request);
            continue;
        };
        let Request { entry, activation, rows, out } = request;
        for piece in pieces(activation_of(entry.as_ref(), activation)?, rows, out)? {
            let (entry, chain, frame) = (entry.clone(), chain.clone(), piece.frame);
            let column = Column { entry, chain, frame, wanted: Vec::new() };
            columns.entry((id, frame)).or_insert(column).wanted.push((own.len() - 1, piece));
        }
    }
    Ok((columns.into_values().collect(), alone))
}

impl Column<'_> {
    pub(super) fn run(mut self) -> Result<()> {
        let entry = self.entry.clone();
        let highest = self.wanted.iter().map(|(position, _)| position + 1).max().unwrap_or(0);
        let links = links(entry.as_ref(), self.chain.get(..highest).unwrap_or_default())?;
        let first = self.first(&links)?;
        let links = links.get(first..).unwrap_or_default();
        let ranges = self.ranges(links)?;
        let Some(row_bytes) = links.first().map(|link| link.activation.layout.row_bytes()) else { return Ok(()) };
        let row_bytes = size(row_bytes)?;
        Buffers::default().decode(entry.as_ref(), links, self.frame, &ranges, |position, rows| {
            let wanted = self.wanted.iter_mut().filter(|(wanted, _)| *wanted == first + position);
            wanted.into_iter().try_for_each(|(_, piece)| copy(&ranges, rows, row_bytes, piece))
        })
    }

    /// The first link that has to be decoded: one below those wanted whose frame needs none below itself.
    fn first(&self, links: &[Link<'_>]) -> Result<usize> {
        let mut first = self.wanted.iter().map(|(position, _)| *position).min().unwrap_or(0);
        while let Some(link) = links.get(first).filter(|_| first > 0) {
            if frame_of(link.activation, self.frame)?.encoding != Encoding::Archive {
                break;
            }
            first -= 1;
        }
        Ok(first)
    }

    /// Rows that are wanted of any activation, as far as decoding goes by more than one, in order.
    fn ranges(&self, links: &[Link<'_>]) -> Result<Vec<Range<u64>>> {
        let mut step = 1;
        for link in links {
            let stored = frame_of(link.activation, self.frame)?;
            step = coded(link.activation, self.frame, stored, &[], None).step()?.max(step);
        }
        let rows = links.first().map_or(0, |link| frame_row_count(link.activation, self.frame));
        let wanted = self.wanted.iter().flat_map(|(_, piece)| &piece.rows);
        let mut all: Vec<_> =
            wanted.map(|range| range.start / step * step..range.end.next_multiple_of(step).min(rows)).collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in all {
            match ranges.last_mut().filter(|last| last.end >= range.start) {
                Some(last) => last.end = last.end.max(range.end),
                None => ranges.push(range),
            }
        }
        Ok(ranges)
    }
}

/// Copies the rows that a piece wants from those of `ranges`.
fn copy(ranges: &[Range<u64>], rows: &[u8], row_bytes: usize, piece: &mut Piece<'_>) -> Result<()> {
    let mut out = &mut *piece.out;
    for wanted in &piece.rows {
        let mut before = 0;
        for range in ranges.iter().take_while(|range| range.end < wanted.end) {
            before += range.end - range.start;
        }
        let first = ranges.iter().find(|range| range.end >= wanted.end).map_or(0, |range| range.start);
        let start = size(before + wanted.start.saturating_sub(first))? * row_bytes;
        let length = size(wanted.end - wanted.start)? * row_bytes;
        let from = rows.get(start..start + length).ok_or_else(|| malformed("rows beyond their frame"))?;
        let mine = out.split_off_mut(..length).ok_or_else(|| malformed("rows do not fit their buffer"))?;
        mine.copy_from_slice(from);
    }
    Ok(())
}
