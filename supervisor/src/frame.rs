//! Frames on a socket pair: a four-byte big-endian length, then JSON.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the channel was closed")]
    Closed,
    #[error("a frame of {0} bytes, more than the {1} allowed")]
    TooLarge(usize, usize),
    #[error("a frame that is no message: {0}")]
    Malformed(serde_json::Error),
}

pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).expect("messages have only text keys");
    let length = u32::try_from(frame.len() - 4).expect("messages are bounded at the socket");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Reads one frame. Dropped half way, it loses what it has read: use it where nobody else reads on.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), most: usize) -> Result<T, Error> {
    let mut reader = Reader::new(most);
    loop {
        if let Some(message) = reader.step(from).await? {
            return Ok(message);
        }
    }
}

/// Reads a frame in steps, each of which may be dropped without losing anything.
pub struct Reader {
    buffer: Vec<u8>,
    most: usize,
}

impl Reader {
    pub fn new(most: usize) -> Self {
        Self { buffer: Vec::new(), most }
    }

    /// One read from the channel; a message once it is whole.
    pub async fn step<T: DeserializeOwned>(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<T>, Error> {
        if let Some(message) = self.take()? {
            return Ok(Some(message));
        }
        match from.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Error::Closed),
            Ok(_) => self.take(),
        }
    }

    fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.most {
            return Err(Error::TooLarge(length, self.most));
        }
        let Some(body) = self.buffer.get(4..4 + length) else {
            self.buffer.reserve(4 + length - self.buffer.len());
            return Ok(None);
        };
        let message = serde_json::from_slice(body).map_err(Error::Malformed)?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }

    /// Whether bytes are left that belong to no message asked for.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Whether the peer has sent something, or gone, although nothing was asked.
pub fn has_unsolicited(channel: &tokio::net::UnixStream) -> bool {
    let mut byte = [0];
    !matches!(channel.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_being_cut_anywhere() {
        let bytes = [encode(&"one"), encode(&"two")].concat();
        for cut in 0..bytes.len() {
            let mut parts = tokio_test_reader(&bytes[..cut], &bytes[cut..]);
            let mut reader = Reader::new(100);
            let mut found = Vec::new();
            while found.len() < 2 {
                if let Some(text) = reader.step::<String>(&mut parts).await.unwrap() {
                    found.push(text);
                }
            }
            assert_eq!(found, ["one", "two"], "cut at {cut}");
            assert!(reader.is_empty());
        }
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_it_is_read() {
        let mut bytes: &[u8] = &[0x7f, 0xff, 0xff, 0xff, b'{'];
        assert!(matches!(read::<String>(&mut bytes, 1000).await, Err(Error::TooLarge(..))));
    }

    #[tokio::test]
    async fn what_is_no_message_and_an_end_are_told_apart() {
        let mut garbage: &[u8] = b"\0\0\0\x02xx";
        assert!(matches!(read::<String>(&mut garbage, 100).await, Err(Error::Malformed(_))));
        let mut cut: &[u8] = b"\0\0\0\x09xx";
        assert!(matches!(read::<String>(&mut cut, 100).await, Err(Error::Closed)));
    }

    fn tokio_test_reader<'a>(first: &'a [u8], second: &'a [u8]) -> impl AsyncRead + Unpin + 'a {
        first.chain(second)
    }
}
