//! A store that lives through a story on a recording disk, and the examination of what a power cut leaves of it.
//!
//! What an opened store shows has to be exactly what it held after some step that is no earlier than the last answered
//! one and no later than the last begun. So nothing acknowledged is missing, nothing revoked, removed or taken is back,
//! and what was not acknowledged is there whole or not at all.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use super::disk::{Call, Cut, Disk, Recording, Verdict};
use super::model::{Content, living, seen, shown};
use super::story::{Dice, Op, Step, Story};
use super::{Embedded, Rows, on, on_new_disk};
use crate::clock::Clock;
use crate::store::suite::clock;
use crate::store::{Store, StoreError};

/// A story with the recording of how it was lived.
pub struct Life {
    steps: Vec<Step>,
    recording: Recording,
    /// For each step, how many events had been when it began and when it was answered.
    spans: Vec<(usize, usize)>,
    /// How many calls the disk got.
    pub calls: usize,
    /// How many batches failed.
    pub failed: usize,
}

/// One way in which the power fails: after so many events, and with so much left.
pub type Failure = (usize, Cut);

impl Life {
    /// Lives the first steps of the story of this seed, single changes and batches, on a disk with this judge.
    ///
    /// A batch that fails has to have been made whole or not at all, with reads going on, and is tried again: once as
    /// things are, then on a good disk, where it has to succeed.
    pub async fn lived(seed: u64, length: usize, judge: impl Fn(Call) -> Verdict + Send + 'static) -> Life {
        let (mut story, mut steps) = (Story::new(seed), Vec::new());
        for _ in 0..length {
            steps.push(story.next().await);
        }
        let clock = clock();
        let (disk, store) = on_new_disk(clock.clone());
        disk.judged_by(judge);
        let mut dice = Dice::new(seed);
        let mut life = Life { steps, recording: disk.recording(), spans: Vec::new(), calls: 0, failed: 0 };
        while life.spans.len() < length {
            let first = life.spans.len();
            let last = first + life.group(first, &mut dice);
            let (started, mut failures) = (disk.position(), 0);
            let answered = loop {
                match together(&store, &clock, &disk, &life.steps[first..last]).await {
                    Ok(answered) => break answered,
                    Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error}"),
                }
                failures += 1;
                assert!(failures <= 2, "a good disk serves");
                let rows = seen(&store).await.expect("reads go on");
                if rows != living(&life.after(first), clock.now()) {
                    assert_eq!(rows, living(&life.after(last), clock.now()), "made in part");
                    break vec![disk.position(); last - first];
                }
                if failures == 2 {
                    disk.judged_by(|_| Verdict::Do);
                    store.ready().await.expect("a good disk serves");
                }
            };
            life.failed += failures;
            life.spans.extend(answered.into_iter().map(|answered| (started, answered)));
        }
        assert_eq!(seen(&store).await.unwrap(), living(&life.after(length), clock.now()));
        drop(store);
        (life.recording, life.calls) = (disk.recording(), disk.calls());
        life
    }

    /// How many steps from this one on are made at once.
    fn group(&self, first: usize, dice: &mut Dice) -> usize {
        let rest = &self.steps[first..];
        let wanted = if dice.below(3) == 0 { 2 + dice.below(6) } else { 1 };
        let until_wait = rest.iter().position(|step| matches!(step.op, Op::Wait(_))).unwrap_or(rest.len());
        wanted.min(rest.len()).min(until_wait.max(1))
    }

    /// What the store holds after so many steps.
    fn after(&self, steps: usize) -> Content {
        steps.checked_sub(1).map(|last| self.steps[last].after.clone()).unwrap_or_default()
    }

    /// After how many steps the store may be when the power fails after so many events.
    fn may_be_after(&self, position: usize) -> RangeInclusive<usize> {
        let answered = self.spans.iter().filter(|(_, answered)| *answered <= position).count();
        let begun = self.spans.iter().filter(|(started, _)| *started < position).count();
        answered..=begun.max(answered)
    }

    /// The lengths that the file was given.
    pub fn lengths(&self) -> Vec<usize> {
        self.recording.lengths()
    }

    /// The names of the operations in it.
    pub fn operations(&self) -> BTreeSet<String> {
        let name =
            |step: &Step| format!("{:?}", step.op).split([' ', '(']).next().unwrap_or_default().to_owned();
        self.steps.iter().map(name).collect()
    }

    /// Whether everything is flushed at this failure.
    pub fn is_boundary(&self, (position, cut): Failure) -> bool {
        matches!(cut, Cut::Nothing) && self.recording.is_flushed(position)
    }

    /// All ways for the power to fail, where those of chance are drawn so many times.
    pub fn failures(&self, draws: usize) -> Vec<Failure> {
        let mut failures = Vec::new();
        for position in 0..=self.recording.len() {
            failures.push((position, Cut::Nothing));
            let sectors = self.recording.sectors(position);
            failures.extend(
                (0..sectors).step_by(1 + sectors / 10).map(|sectors| (position, Cut::Torn { sectors })),
            );
            if self.recording.is_open(position) {
                failures.extend((0..draws).flat_map(|_| [(position, Cut::Writes), (position, Cut::Sectors)]));
            }
        }
        failures
    }

    /// What is wrong with the store after this failure of the power, and after `again` others during its repair or the
    /// step that came next.
    pub async fn examine(&self, failure: Failure, again: usize, dice: &mut Dice) -> Result<(), String> {
        let (position, cut) = failure;
        let told = |what: String| format!("{cut:?} after {position} events: {what}");
        let image = self.recording.image(position, cut, dice);
        let second = self.examine_image(image, self.may_be_after(position)).await.map_err(told)?;
        for _ in 0..again {
            let position = dice.below(second.recording.len() + 1);
            let cut = [Cut::Nothing, Cut::Writes, Cut::Sectors][dice.below(3)];
            let image = second.recording.image(position, cut, dice);
            let of_repair = |what| told(format!("then {cut:?} after {position} more: {what}"));
            self.examine_image(image, second.may_be_after(position)).await.map_err(of_repair)?;
        }
        Ok(())
    }

    async fn examine_image(
        &self,
        image: Vec<u8>,
        may_be_after: RangeInclusive<usize>,
    ) -> Result<Second, String> {
        let (disk, clock) = (Disk::of(image), clock());
        let store = on(&disk, clock.clone()).map_err(|error| format!("does not open: {error}"))?;
        let rows = seen(&store).await.map_err(|error| format!("cannot be read: {error}"))?;
        let is_after = |step: &usize| rows == living(&self.after(*step), clock.now());
        let Some(after) = may_be_after.clone().find(is_after) else {
            return Err(match (0..*may_be_after.start()).rev().find(is_after) {
                Some(earlier) => format!("lost {:.100}", format!("{:?}", self.steps[earlier].op)),
                None => format!("as it never was around step {may_be_after:?}"),
            });
        };
        if !shown(&store, &rows).await.map_err(|error| error.to_string())? {
            return Err("reads differ from rows".to_owned());
        }
        let started = disk.position();
        if let Some(next) = self.steps.get(after) {
            clock.advance(next.at);
            let answer = next.op.run(&store, &clock).await.map_err(|error| error.to_string())?;
            let rows = seen(&store).await.map_err(|error| error.to_string())?;
            if answer != next.answer || rows != living(&next.after, clock.now()) {
                return Err(format!("goes on wrongly: {:.100}", format!("{:?}", next.op)));
            }
        }
        let begun = after + usize::from(after < self.steps.len());
        let answered = disk.position();
        drop(store);
        Ok(Second { recording: disk.recording(), after, begun, started, answered })
    }
}

/// What was recorded while a store was repaired and made one more step, if there was one.
struct Second {
    recording: Recording,
    after: usize,
    begun: usize,
    started: usize,
    answered: usize,
}

impl Second {
    fn may_be_after(&self, position: usize) -> RangeInclusive<usize> {
        let answered = if self.answered <= position { self.begun } else { self.after };
        let begun = if self.started < position { self.begun } else { self.after };
        answered..=begun.max(answered)
    }
}

/// Makes these steps in one batch of the writer; how many events had been when each was answered. They succeed as the
/// story has it, or fail together.
async fn together(
    store: &Embedded,
    clock: &Clock,
    disk: &Disk,
    steps: &[Step],
) -> Result<Vec<usize>, StoreError> {
    // Holds the writer until all have queued up.
    let (gate, opened) = mpsc::channel::<()>();
    let (enters, entered) = mpsc::channel();
    let hold = move |_: &mut Rows<'_>| {
        enters.send(()).unwrap();
        let _ = opened.recv();
        Ok(())
    };
    let _ = pin!(store.file.write(hold, |()| {})).poll(&mut Context::from_waker(Waker::noop()));
    entered.recv().expect("the store is open again");
    let mut gate = Some(gate);
    let mut running: Vec<_> = steps.iter().map(|step| Some(Box::pin(step.op.run(store, clock)))).collect();
    let mut answers: Vec<_> = steps.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (future, answer) in running.iter_mut().zip(&mut answers) {
            if let Some(waiting) = future
                && let Poll::Ready(ready) = waiting.as_mut().poll(context)
            {
                (*future, *answer) = (None, Some((ready, disk.position())));
            }
        }
        gate.take();
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    let failed = answers.iter().filter(|(answer, _)| answer.is_err()).count();
    assert!(failed == 0 || failed == answers.len(), "a batch fails as a whole");
    let mut answered = Vec::new();
    for ((answer, position), step) in answers.into_iter().zip(steps) {
        assert_eq!(answer?, step.answer, "{:?}", step.op);
        answered.push(position);
    }
    Ok(answered)
}
