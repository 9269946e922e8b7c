//! What one execution writes, kept up to a limit.

use std::borrow::Cow;

use tokio::net::unix::pipe;

/// Collects the bytes of one execution.
pub struct Log {
    kept: Vec<u8>,
    limit: usize,
    dropped: u64,
}

impl Log {
    pub fn new(limit: u64) -> Self {
        Self { kept: Vec::new(), limit: usize::try_from(limit).unwrap_or(usize::MAX), dropped: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.limit - self.kept.len();
        let take = room.min(bytes.len());
        self.kept.extend_from_slice(&bytes[..take]);
        self.dropped += (bytes.len() - take) as u64;
    }

    /// Takes what is in the pipe now. Everything that was written before this call is in it: a
    /// write to a pipe is there before it returns.
    pub fn drain(&mut self, pipe: &pipe::Receiver) {
        // Bounded, because a process that outlives its execution can write on and on.
        for _ in 0..512 {
            if !matches!(self.take(pipe), Taken::Some) {
                return;
            }
        }
    }

    /// Takes a part of what is in the pipe, so that one loud execution does not hold up the others.
    pub fn take(&mut self, pipe: &pipe::Receiver) -> Taken {
        let mut buffer = [0; 8 << 10];
        match pipe.try_read(&mut buffer) {
            Ok(0) => Taken::End,
            Ok(read) => {
                self.push(&buffer[..read]);
                Taken::Some
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Taken::Nothing,
            Err(_) => Taken::End,
        }
    }

    /// The last line that was written, as far as it was kept.
    pub fn last_line(&self) -> Cow<'_, str> {
        let line = self.kept.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
        String::from_utf8_lossy(line.unwrap_or_default())
    }

    pub fn is_truncated(&self) -> bool {
        self.dropped > 0
    }

    /// The text between the lines that Qinling's users know. The last is there only if the function
    /// came to an end of its own.
    pub fn into_text(self, execution: &str, finished: bool) -> String {
        let mut text = format!("Start execution: {execution}\n");
        text.push_str(&String::from_utf8_lossy(&self.kept));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        if self.dropped > 0 {
            text.push_str(&format!("[log cut here: {} more bytes were written]\n", self.dropped));
        }
        if finished {
            text.push_str(&format!("Finished execution: {execution}\n"));
        }
        text
    }
}

/// What a read of the pipe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Some,
    Nothing,
    /// Nobody holds the other end any more.
    End,
}

/// Takes the first thousand bytes from the pipe, for a message.
pub fn peek(pipe: &pipe::Receiver) -> String {
    let mut log = Log::new(1000);
    log.drain(pipe);
    String::from_utf8_lossy(&log.kept).trim().to_owned()
}

/// Throws away what is in the pipe.
pub fn discard(pipe: &pipe::Receiver) {
    Log::new(0).drain(pipe);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_around_the_output_are_qinlings() {
        let mut log = Log::new(100);
        log.push(b"Hello\n");
        assert_eq!(log.into_text("e", true), "Start execution: e\nHello\nFinished execution: e\n");
    }

    #[test]
    fn a_log_over_its_limit_is_cut_with_a_marker() {
        let mut log = Log::new(4);
        log.push(b"abc");
        log.push(b"def");
        assert!(log.is_truncated());
        assert_eq!(
            log.into_text("e", false),
            "Start execution: e\nabcd\n[log cut here: 2 more bytes were written]\n"
        );
    }
}
