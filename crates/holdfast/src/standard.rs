//! The standard streams: they may be closed, full, slow, or made non-blocking by another process.
//!
//! Nothing here panics over an output that cannot be written. `println!` and `eprintln!` do, so
//! nothing in this crate uses them.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use rustix::stdio;

/// Standard output.
pub(crate) fn output() -> BorrowedFd<'static> {
    stdio::stdout()
}

/// Standard error.
pub(crate) fn error() -> BorrowedFd<'static> {
    stdio::stderr()
}

/// Tells people something on standard error. If that cannot be written, nobody can be told.
pub(crate) fn tell(text: &str) {
    let _ = write_all(error(), format!("{text}\n").as_bytes());
}

/// Reads standard input until nobody holds its other end any more.
pub(crate) fn wait_for_end_of_input() {
    let input = stdio::stdin();
    let mut ignored = [0; 64];
    loop {
        match read(input, &mut ignored) {
            Ok(1..) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&input, PollFlags::IN)], None);
            }
            Ok(0) | Err(_) => return,
        }
    }
}

/// Writes all bytes, waiting for a reader that is slow.
pub(crate) fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(stream, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // A parent process has made the pipe non-blocking.
            Err(Errno::AGAIN) => wait_until_writable(stream, None)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until a write would not block, or would fail, or `limit` is over.
pub(crate) fn wait_until_writable(
    stream: BorrowedFd<'_>,
    limit: Option<Duration>,
) -> io::Result<()> {
    let limit = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::new(&stream, PollFlags::OUT)], limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_slow_reader_of_a_non_blocking_pipe_gets_everything() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let text: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let expected = text.clone();
        let writing = std::thread::spawn(move || write_all(writer.as_fd(), &text));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writing.join().unwrap().unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_reader_that_is_gone_and_a_full_device_are_errors() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = write_all(writer.as_fd(), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let error = write_all(full.as_fd(), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
