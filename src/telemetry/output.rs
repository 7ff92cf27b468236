//! Standard output and standard error, each written by a thread of its own: whoever reads them slowly, or not at all, holds no
//! request up. What finds no room any more is dropped, and counted.
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// So much of each may wait to be read, bytes.
const ROOM: usize = 4 * 1024 * 1024;
/// What is written at once, where so much waits, bytes.
const AT_ONCE: usize = 64 * 1024;
/// After what was there has been written, so long more of the access log gathers. To wake a thread for every line would take half as
/// long as to serve a request, where both have one core. The log is written at once: its last lines matter most.
const GATHERING: Duration = Duration::from_millis(5);
/// How long the end of the process waits for whoever reads.
const END: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(1);

static ACCESS: LazyLock<Output> = LazyLock::new(|| Output::to("access-log", io::stdout(), GATHERING));
static LOG: LazyLock<Output> = LazyLock::new(|| Output::to("log", io::stderr(), Duration::ZERO));

/// One of the two.
pub struct Output {
    /// `None`: the system has no thread for it, and all is lost.
    lines: Option<Sender<Vec<u8>>>,
    account: Arc<Account>,
}

#[derive(Default)]
struct Account {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Lines that were lost.
    dropped: AtomicU64,
}

/// Standard output: the access log.
pub fn access() -> &'static Output {
    &ACCESS
}

/// Standard error: the log, and the audit log in it.
pub fn log() -> &'static Output {
    &LOG
}

/// Waits until all is written, as long as somebody reads: for the end of the process.
pub fn flush() {
    let mut left = END;
    let is_done = || access().is_written() && log().is_written();
    while !left.is_zero() && !is_done() {
        thread::sleep(POLL);
        left -= POLL;
    }
}

// === impl Output ===

impl Output {
    fn to(name: &str, stream: impl Write + Send + 'static, gathering: Duration) -> Self {
        let account = Arc::<Account>::default();
        let (lines, read) = mpsc::channel();
        let kept = Arc::clone(&account);
        let writer = thread::Builder::new().name(name.to_owned());
        let lines = writer.spawn(move || write(&read, stream, &kept, gathering)).ok().map(|_| lines);
        Self { lines, account }
    }

    /// A whole line, with its end.
    pub fn line(&self, line: Vec<u8>) {
        let length = line.len();
        let Some(lines) = &self.lines else {
            return self.account.lost(1);
        };
        if self.account.waiting.fetch_add(length, Ordering::AcqRel) + length > ROOM
            || lines.send(line).is_err()
        {
            self.account.waiting.fetch_sub(length, Ordering::AcqRel);
            self.account.lost(1);
        }
    }

    /// Lines that nobody has read in time.
    pub fn dropped(&self) -> u64 {
        self.account.dropped.load(Ordering::Relaxed)
    }

    fn is_written(&self) -> bool {
        self.account.waiting.load(Ordering::Acquire) == 0
    }
}

impl Account {
    fn lost(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }
}

/// Each event of the log is written by one call.
impl Write for &Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static Output {
    type Writer = &'static Output;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// What the thread does, until nobody has anything to say any more.
fn write(lines: &Receiver<Vec<u8>>, mut stream: impl Write, account: &Account, gathering: Duration) {
    let mut text = Vec::new();
    while let Ok(first) = lines.recv() {
        text.extend_from_slice(&first);
        let mut count = 1;
        let is_all = loop {
            match lines.try_recv() {
                Ok(more) => text.extend_from_slice(&more),
                Err(_) => break true,
            }
            count += 1;
            if text.len() >= AT_ONCE {
                break false;
            }
        };
        if stream.write_all(&text).and_then(|()| stream.flush()).is_err() {
            account.lost(count);
        }
        account.waiting.fetch_sub(text.len(), Ordering::AcqRel);
        text.clear();
        if is_all && !gathering.is_zero() {
            thread::sleep(gathering);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// Nobody reads until it is opened.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<Held>, Condvar)>);

    /// Whether it is open, and what was written.
    type Held = (bool, Vec<u8>);

    impl Pipe {
        fn open(&self) {
            self.0.0.lock().unwrap().0 = true;
            self.0.1.notify_all();
        }
    }

    impl Write for Pipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let held = self.0.0.lock().unwrap();
            let mut held = self.0.1.wait_while(held, |(is_open, _)| !*is_open).unwrap();
            held.1.extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_nothing_waits() {
        let pipe = Pipe::default();
        let output = Output::to("test", pipe.clone(), Duration::ZERO);
        let line = vec![b'x'; ROOM / 8];
        for _ in 0..8 {
            output.line(line.clone());
        }
        assert_eq!(output.dropped(), 0);
        for _ in 0..5 {
            output.line(line.clone());
        }
        assert_eq!(output.dropped(), 5);
        assert!(!output.is_written());
        pipe.open();
        while !output.is_written() {
            thread::yield_now();
        }
        assert_eq!(pipe.0.0.lock().unwrap().1.len(), ROOM);
        output.line(line);
        assert_eq!(output.dropped(), 5, "there is room again");
    }

    #[test]
    fn lines_that_come_close_together_are_written_together() {
        #[derive(Clone, Default)]
        struct Counted(Arc<AtomicUsize>);
        impl Write for Counted {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let writes = Counted::default();
        let output = Output::to("test", writes.clone(), GATHERING);
        for _ in 0..1_000 {
            output.line(b"one\n".to_vec());
            // About as long as a request takes.
            for _ in 0..1_000 {
                std::hint::spin_loop();
            }
        }
        while !output.is_written() {
            thread::yield_now();
        }
        let writes = writes.0.load(Ordering::Relaxed);
        assert!(writes < 500, "{writes}");
    }

    #[test]
    fn whoever_has_closed_the_pipe_gets_nothing_and_holds_nothing_up() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _text: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::to("test", Closed, GATHERING);
        output.line(b"one\n".to_vec());
        output.line(b"two\n".to_vec());
        while !output.is_written() {
            thread::yield_now();
        }
        assert_eq!(output.dropped(), 2);
    }
}
