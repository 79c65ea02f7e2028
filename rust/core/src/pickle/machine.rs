//! The stack machine.

use std::collections::HashMap;

use super::global;
use super::input::Input;
use super::node::{Id, Node};
use super::opcode::{self, Op};
use super::{EXPANSION, EXPANSION_FREE, MAX_STEPS, VALUE_WEIGHT, at_byte, malformed};
use crate::error::{Error, Kind, Result};

/// Runs pickles, one after another. Values stay when a pickle ends, and its stack and memo go.
pub(super) struct Machine<'a> {
    pub(super) input: Input<'a>,
    pub(super) nodes: Vec<Node>,
    stack: Vec<Id>,
    /// How much of the stack lies below each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    steps: usize,
    /// What may still be made, in bytes.
    left: u64,
    /// Whether the pickles are those of a storage: these have a persistent id, and call nothing.
    of_storage: bool,
    /// Where the instruction that runs begins.
    pub(super) at: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            input: Input::new(bytes, 0),
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            steps: 0,
            left: (bytes.len() as u64).saturating_mul(EXPANSION).saturating_add(EXPANSION_FREE),
            of_storage: false,
            at: 0,
        }
    }

    /// A machine for pickles within this one, on its account until [`Machine::settle`].
    pub(super) fn inner<'b>(&self, input: Input<'b>) -> Machine<'b> {
        let Self { steps, left, .. } = *self;
        Machine { input, steps, left, of_storage: true, ..Machine::new(&[]) }
    }

    /// Takes over what an inner machine used.
    pub(super) fn settle(&mut self, inner: &Machine<'_>) {
        (self.steps, self.left) = (inner.steps, inner.left);
    }

    /// The first byte that was not read.
    pub(super) fn place(&self) -> usize {
        self.input.place()
    }

    /// Runs one pickle to its end, and gives its value.
    pub(super) fn run(&mut self) -> Result<Id> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            self.at = self.input.place();
            self.count_steps(1)?;
            match opcode::next(&mut self.input)? {
                Op::Stop => return self.finish(),
                op => self.step(op)?,
            }
        }
    }

    fn finish(&mut self) -> Result<Id> {
        let root = self.pop()?;
        if self.stack.is_empty() && self.marks.is_empty() {
            return Ok(root);
        }
        Err(self.wrong("it ends with more than one value"))
    }

    fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Push(node) => self.push(node),
            Op::Skip | Op::Stop => Ok(()),
            Op::Mark | Op::Pop | Op::PopMark | Op::Duplicate => self.rearrange(&op),
            Op::Tuple(_) | Op::List | Op::Dict => self.collect(&op),
            Op::Append | Op::Appends | Op::SetItem | Op::SetItems => self.fill(&op),
            Op::Put(_) | Op::Memoize | Op::Get(_) => self.remember(&op),
            Op::Global(module, name) => {
                let [module, name] = [module, name].map(|range| self.input.all().get(range).unwrap_or_default());
                let found = global::find(&String::from_utf8_lossy(module), &String::from_utf8_lossy(name), self.at)?;
                self.push(Node::Global(found))
            }
            Op::StackGlobal => {
                let (name, module) = (self.pop()?, self.pop()?);
                let found = global::find(self.text(module)?, self.text(name)?, self.at)?;
                self.push(Node::Global(found))
            }
            Op::Reduce if !self.of_storage => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let called = self.call(callable, arguments)?;
                self.push(called)
            }
            Op::Build => {
                let state = self.pop()?;
                let target = self.top()?;
                self.set_state(target, state)
            }
            // The id itself says what the storage is.
            Op::PersistentId if self.of_storage => self.top().map(drop),
            Op::Reduce => Err(self.refused("REDUCE")),
            Op::PersistentId => Err(self.refused("BINPERSID")),
            Op::Refused(name) => Err(self.refused(name)),
        }
    }

    fn rearrange(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Mark => self.marks.push(self.stack.len()),
            // A mark may be dropped like a value.
            Op::Pop if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            Op::Pop => drop(self.pop()?),
            Op::PopMark => drop(self.pop_to_mark()?),
            _ => {
                let top = self.top()?;
                self.stack.push(top);
            }
        }
        Ok(())
    }

    fn collect(&mut self, op: &Op) -> Result<()> {
        let node = match op {
            Op::Tuple(Some(count)) => {
                let items = (0..*count).map(|_| self.pop());
                let mut items = items.collect::<Result<Vec<_>>>()?;
                items.reverse();
                Node::Tuple(items)
            }
            Op::Tuple(None) => Node::Tuple(self.pop_to_mark()?),
            Op::List => Node::List(self.pop_to_mark()?),
            _ => {
                let items = self.pop_to_mark()?;
                Node::Dict(self.pairs(&items)?)
            }
        };
        self.push(node)
    }

    fn fill(&mut self, op: &Op) -> Result<()> {
        let items = match op {
            Op::Append => vec![self.pop()?],
            Op::SetItem => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.pop_to_mark()?,
        };
        let pairs = if matches!(op, Op::SetItem | Op::SetItems) { Some(self.pairs(&items)?) } else { None };
        let target = self.top()?;
        match (self.node_mut(target)?, pairs) {
            (Node::List(list), None) => list.extend(items),
            (Node::Dict(dict), Some(pairs)) => dict.extend(pairs),
            (other, _) => {
                let kind = other.kind();
                return Err(self.wrong(format!("it puts an item into {kind}")));
            }
        }
        Ok(())
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(self.wrong("a key of a dict has no value")),
        }
    }

    fn remember(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Get(index) => {
                let known = self.memo.get(index).copied();
                let known = known.ok_or_else(|| self.wrong(format!("nothing was remembered as `{index}`")))?;
                self.stack.push(known);
            }
            op => {
                let index = if let Op::Put(index) = op { *index } else { self.memo.len() as u64 };
                let top = self.top()?;
                self.memo.insert(index, top);
            }
        }
        Ok(())
    }

    /// A new value; steps bound their number.
    pub(super) fn add(&mut self, node: Node) -> Result<Id> {
        let id = Id::try_from(self.nodes.len()).map_err(|_| self.beyond("it has too many values"))?;
        self.nodes.push(node);
        Ok(id)
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    /// Values below the last mark are out of reach.
    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[Id]>::last);
        above.copied().ok_or_else(|| self.wrong("there is no value to take"))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.wrong("there is no mark")),
        }
    }

    pub(super) fn node(&self, id: Id) -> Result<&Node> {
        usize::try_from(id).ok().and_then(|id| self.nodes.get(id)).ok_or_else(|| self.wrong("no such value"))
    }

    pub(super) fn node_mut(&mut self, id: Id) -> Result<&mut Node> {
        let at = self.at;
        let node = usize::try_from(id).ok().and_then(|id| self.nodes.get_mut(id));
        node.ok_or_else(|| malformed(at, "no such value"))
    }

    fn count_steps(&mut self, steps: usize) -> Result<()> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps <= MAX_STEPS {
            return Ok(());
        }
        Err(self.beyond(format!("it has more than `{MAX_STEPS}` instructions and values")))
    }

    /// Counts values that come of no instruction of their own.
    pub(super) fn spend_values(&mut self, values: usize) -> Result<()> {
        self.count_steps(values)?;
        self.spend(VALUE_WEIGHT * values as u64)
    }

    /// Counts what is made against what may be made.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.beyond(format!("its values would take more than `{EXPANSION}` times its length"))),
        }
    }

    /// Something impossible in the instruction that runs.
    pub(super) fn wrong(&self, message: impl std::fmt::Display) -> Error {
        malformed(self.at, message)
    }

    pub(super) fn beyond(&self, message: impl std::fmt::Display) -> Error {
        at_byte(Kind::LimitExceeded, self.at, message)
    }

    pub(super) fn untrusted(&self, message: impl std::fmt::Display) -> Error {
        at_byte(Kind::UntrustedInput, self.at, format!("{message}; nothing was run"))
    }

    fn refused(&self, name: &str) -> Error {
        self.untrusted(format!("`{name}` makes what is no data of an array or entry"))
    }
}
