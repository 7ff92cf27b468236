//! A disk in memory that remembers every call in order, can be told to lie or to fail, and knows what a power cut may
//! leave of it.
//!
//! What a flush has confirmed stays. Of what was written since, any part may be there: other writes than the last ones,
//! in another order, sectors of a write without their neighbours. Lengths change in order, as a file system's journal
//! has it. After a *failed* flush the same holds for what it was to flush, even after later flushes: the system shows
//! such pages to readers and does not write them again.
//!
//! The system has none of it in memory: whoever reads from it waits.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

use super::super::glance;
use super::story::Dice;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// What a file system allocates.
const BLOCK: usize = 4096;

/// The disk; clones are the same one.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Inside>>);

struct Inside {
    base: Vec<u8>,
    /// What readers see, flushed or not.
    bytes: Vec<u8>,
    /// Which blocks have ever been written, and so have their place.
    allocated: Vec<bool>,
    log: Vec<Event>,
    calls: usize,
    flushes: usize,
    judge: Box<Judge>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    Write {
        offset: usize,
        data: Vec<u8>,
    },
    SetLen(usize),
    /// Everything before is on the disk.
    Flush,
    /// Nobody knows what is on the disk of that since the last flush, and it will not be written again.
    FailedFlush,
}

/// What the disk is about to do, counted from the last [`Disk::judged_by`].
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Of all calls.
    pub number: usize,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// `takes_room` where nothing was ever written.
    Write {
        takes_room: bool,
    },
    SetLen,
    /// Counted among the flushes.
    Flush {
        number: usize,
    },
}

/// What comes of it.
pub enum Verdict {
    Do,
    /// Say that it is done and do nothing.
    Pretend,
    /// Do half of it and fail.
    Fail(ErrorKind),
}

type Judge = dyn Fn(Call) -> Verdict + Send;

impl Disk {
    /// A good disk with these bytes on it.
    pub fn of(bytes: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Inside {
            allocated: vec![true; bytes.len().div_ceil(BLOCK)],
            base: bytes.clone(),
            bytes,
            log: Vec::new(),
            calls: 0,
            flushes: 0,
            judge: Box::new(|_| Verdict::Do),
        })))
    }

    /// From now on this decides; calls are counted anew.
    pub fn judged_by(&self, judge: impl Fn(Call) -> Verdict + Send + 'static) {
        let mut inside = self.inside();
        (inside.calls, inside.flushes, inside.judge) = (0, 0, Box::new(judge));
    }

    /// What is on the disk now is where its recording begins.
    pub fn begins_here(&self) {
        let mut inside = self.inside();
        inside.base = inside.bytes.clone();
        inside.log.clear();
    }

    /// Calls that were judged.
    pub fn calls(&self) -> usize {
        self.inside().calls
    }

    /// What readers see.
    pub fn bytes(&self) -> Vec<u8> {
        self.inside().bytes.clone()
    }

    /// How many events have been.
    pub fn position(&self) -> usize {
        self.inside().log.len()
    }

    /// What has been so far.
    pub fn recording(&self) -> Recording {
        let inside = self.inside();
        Recording { base: inside.base.clone(), log: inside.log.clone() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }
}

impl Inside {
    fn judge(&mut self, what: What) -> Verdict {
        let call = Call { number: self.calls, what };
        self.calls += 1;
        (self.judge)(call)
    }

    fn note(&mut self, event: Event) {
        event.apply(&mut self.bytes);
        self.log.push(event);
    }
}

impl Event {
    /// On bytes of the length so far: what lies behind the end is not there.
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Event::Write { offset, data } => {
                let end = (offset + data.len()).min(bytes.len());
                if *offset < end {
                    bytes[*offset..end].copy_from_slice(&data[..end - offset]);
                }
            }
            Event::SetLen(length) => bytes.resize(*length, 0),
            Event::Flush | Event::FailedFlush => {}
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Disk")
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inside().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        glance::about_to_wait();
        let inside = self.inside();
        let offset = offset as usize;
        let found = inside.bytes.get(offset..offset + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut inside = self.inside();
        match inside.judge(What::SetLen) {
            Verdict::Do => {
                // What is cut off gives its place back; what is added has none yet.
                inside.allocated.resize((length as usize).div_ceil(BLOCK), false);
                inside.note(Event::SetLen(length as usize));
                Ok(())
            }
            Verdict::Pretend => Ok(()),
            Verdict::Fail(kind) => Err(kind.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inside = self.inside();
        let number = inside.flushes;
        inside.flushes += 1;
        match inside.judge(What::Flush { number }) {
            Verdict::Do => inside.note(Event::Flush),
            Verdict::Pretend => {}
            Verdict::Fail(kind) => {
                inside.note(Event::FailedFlush);
                return Err(kind.into());
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inside = self.inside();
        let offset = offset as usize;
        assert!(
            offset + data.len() <= inside.bytes.len(),
            "the database writes within the length it has set"
        );
        let blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
        let takes_room = !inside.allocated[blocks.clone()].iter().all(|allocated| *allocated);
        match inside.judge(What::Write { takes_room }) {
            Verdict::Do => {
                inside.allocated[blocks].fill(true);
                inside.note(Event::Write { offset, data: data.to_vec() });
                Ok(())
            }
            Verdict::Pretend => Ok(()),
            Verdict::Fail(kind) => {
                inside.note(Event::Write { offset, data: data[..data.len() / 2].to_vec() });
                Err(kind.into())
            }
        }
    }
}

/// What was on the disk and what happened since.
pub struct Recording {
    base: Vec<u8>,
    log: Vec<Event>,
}

/// How much of what is not flushed a power cut leaves.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All of it, as if the process had been killed.
    Nothing,
    /// All but the end of the last write, from this sector on.
    Torn { sectors: usize },
    /// Some of the writes, in any order.
    Writes,
    /// Some of the sectors.
    Sectors,
}

impl Recording {
    /// How many events there are.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// The lengths that were set.
    pub fn lengths(&self) -> Vec<usize> {
        let lengths = self.log.iter().filter_map(|event| match event {
            Event::SetLen(length) => Some(*length),
            _ => None,
        });
        [self.base.len()].into_iter().chain(lengths).collect()
    }

    /// Whether the event before this position is a flush.
    pub fn is_flushed(&self, position: usize) -> bool {
        matches!(position.checked_sub(1).map(|last| &self.log[last]), Some(Event::Flush))
    }

    /// Whether anything before this position is uncertain.
    pub fn is_open(&self, position: usize) -> bool {
        self.certain(position).contains(&false)
    }

    /// How many sectors the write before this position has; 0 when it is none.
    pub fn sectors(&self, position: usize) -> usize {
        match position.checked_sub(1).map(|last| &self.log[last]) {
            Some(Event::Write { data, .. }) => data.len().div_ceil(SECTOR),
            _ => 0,
        }
    }

    /// What the disk may hold when the power fails after so many events.
    pub fn image(&self, position: usize, cut: Cut, dice: &mut Dice) -> Vec<u8> {
        let events = &self.log[..position];
        let mut bytes = self.base.clone();
        let certain = self.certain(position);
        let order = match cut {
            Cut::Writes => self.shuffled(position, &certain, dice),
            _ => (0..position).collect(),
        };
        for index in order {
            let event = &events[index];
            match (event, cut) {
                (Event::SetLen(_), _) | (_, Cut::Nothing) => event.apply(&mut bytes),
                _ if certain[index] => event.apply(&mut bytes),
                (Event::Write { offset, data }, Cut::Torn { sectors }) if index + 1 == position => {
                    let data = data[..data.len().min(sectors * SECTOR)].to_vec();
                    Event::Write { offset: *offset, data }.apply(&mut bytes);
                }
                (_, Cut::Torn { .. }) => event.apply(&mut bytes),
                (_, Cut::Writes) => {
                    if dice.below(2) == 0 {
                        event.apply(&mut bytes);
                    }
                }
                (Event::Write { offset, data }, Cut::Sectors) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if dice.below(2) == 0 {
                            let offset = offset + number * SECTOR;
                            Event::Write { offset, data: sector.to_vec() }.apply(&mut bytes);
                        }
                    }
                }
                (_, Cut::Sectors) => {}
            }
        }
        bytes
    }

    /// Which events nothing undoes: a flush came after them, and it was the first to come and good.
    fn certain(&self, position: usize) -> Vec<bool> {
        let mut certain = vec![false; position];
        let mut open = 0;
        for index in 0..position {
            match self.log[index] {
                Event::Flush => {
                    certain[open..=index].fill(true);
                    open = index + 1;
                }
                Event::FailedFlush => open = index + 1,
                _ => {}
            }
        }
        certain
    }

    /// The order of events where writes since the last flush have changed places among themselves, and lengths after
    /// some point have not been set.
    fn shuffled(&self, position: usize, certain: &[bool], dice: &mut Dice) -> Vec<usize> {
        let mut order: Vec<usize> = (0..position).collect();
        let open = certain.iter().rposition(|certain| *certain).map_or(0, |last| last + 1);
        let writes: Vec<usize> =
            (open..position).filter(|index| matches!(self.log[*index], Event::Write { .. })).collect();
        let mut shuffled = writes.clone();
        for last in (1..shuffled.len()).rev() {
            shuffled.swap(last, dice.below(last + 1));
        }
        for (place, index) in writes.into_iter().zip(shuffled) {
            order[place] = index;
        }
        let lengths: Vec<usize> =
            (open..position).filter(|index| matches!(self.log[*index], Event::SetLen(_))).collect();
        let kept = dice.below(lengths.len() + 1);
        order.retain(|index| !lengths[kept..].contains(index));
        order
    }
}
