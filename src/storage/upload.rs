use std::io::Write;

use md5::Md5;
use protocol::archive::Limits;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{Content, Error, Result, blocking, check};

/// How much is gathered before it is written and hashed: a hop to another thread for each chunk of
/// a request would cost more than the work.
const BATCH: usize = 256 << 10;

/// A package on its way in.
#[derive(Debug)]
pub struct Upload {
    sink: Sink,
    batch: Vec<u8>,
    bytes: u64,
    limit: u64,
}

#[derive(Debug)]
struct Sink {
    /// Removed when it is dropped.
    file: NamedTempFile,
    md5: Md5,
    sha256: Sha256,
}

impl Upload {
    /// An upload into `file` of at most `limit` bytes.
    pub(super) fn new(file: NamedTempFile, limit: u64) -> Self {
        let sink = Sink { file, md5: Md5::new(), sha256: Sha256::new() };
        Self { sink, batch: Vec::new(), bytes: 0, limit }
    }

    /// Takes the next bytes and gives the upload back, unless they are too many or the disk fails.
    pub async fn write(mut self, chunk: &[u8]) -> Result<Self> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.batch.extend_from_slice(chunk);
        if self.batch.len() < BATCH { Ok(self) } else { self.flush().await }
    }

    /// Ends the upload. What was received is not checked yet.
    pub async fn finish(self) -> Result<Received> {
        let Self { sink, bytes, .. } = self.flush().await?;
        Ok(Received {
            file: sink.file,
            digest: hex::encode(sink.sha256.finalize()),
            md5: hex::encode(sink.md5.finalize()),
            bytes,
        })
    }

    async fn flush(self) -> Result<Self> {
        let Self { mut sink, batch, bytes, limit } = self;
        let (sink, batch) = blocking(move || {
            sink.file.write_all(&batch)?;
            sink.md5.update(&batch);
            sink.sha256.update(&batch);
            let mut batch = batch;
            batch.clear();
            Ok((sink, batch))
        })
        .await?;
        Ok(Self { sink, batch, bytes, limit })
    }
}

/// A package that has arrived, in a temporary file that goes away with this.
#[derive(Debug)]
pub struct Received {
    pub(super) file: NamedTempFile,
    pub digest: String,
    /// What Qinling's clients know a package by.
    pub md5: String,
    pub bytes: u64,
}

impl Received {
    /// The package to be read here and now, without being kept.
    pub async fn into_content(self) -> Result<Content> {
        let bytes = self.bytes;
        // Its name goes, the content stays as long as it is read.
        let mut file = self.file.into_file();
        std::io::Seek::rewind(&mut file)?;
        Ok(Content { bytes, reader: Box::new(tokio::fs::File::from_std(file)) })
    }

    /// Checks that this is a zip file that holds nothing it must not hold. What the directory
    /// claims of sizes is checked against the truth when the package is unpacked, in the container.
    pub async fn check(self, limits: Limits) -> Result<Self> {
        blocking(move || {
            check::zip(self.file.as_file(), limits)?;
            Ok(self)
        })
        .await
    }
}
