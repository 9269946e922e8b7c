//! The rules of `protocol::archive`, applied to a zip file that was uploaded.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use protocol::archive::{Entry, Limits, Rules};
use zip::{CompressionMethod, ZipArchive};

use super::{Error, Result};

const ENTRY: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";

/// Most steps that finding the directory of a zip may take: every candidate for its end may lead
/// to every entry.
const MAX_STEPS: u64 = 20_000_000;

pub(super) fn zip(mut file: &File, limits: Limits) -> Result<()> {
    bound_the_directory(file, limits)?;
    file.seek(SeekFrom::Start(0))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(unreadable)?;
    let mut rules = Rules::new(limits);
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(unreadable)?;
        let admitted = rules.admit(&Entry {
            name: entry.name(),
            packed: entry.compressed_size(),
            expanded: entry.size(),
            mode: entry.unix_mode(),
            encrypted: entry.encrypted(),
        });
        admitted.map_err(Error::Refused)?;
        if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(Error::Refused(format!(
                "'{}' is compressed in another way than 'deflate'",
                entry.name()
            )));
        }
    }
    Ok(())
}

/// Counts what looks like entries before anything is built of them. A directory of a million empty
/// names is a small file and much memory. Files inside that are zips themselves count as well, hence
/// the allowance.
fn bound_the_directory(mut file: &File, limits: Limits) -> Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let (mut entries, mut ends) = (0_u64, 0_u64);
    let mut buffer = vec![0; 64 << 10];
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            break;
        }
        let filled = kept + read;
        for window in buffer[..filled].windows(4) {
            entries += u64::from(window == ENTRY);
            ends += u64::from(window == END);
        }
        kept = filled.min(3);
        buffer.copy_within(filled - kept..filled, 0);
    }
    if ends == 0 {
        return Err(Error::NotZip);
    }
    if entries > limits.max_entries.saturating_mul(4) {
        return Err(Error::Refused(format!("it holds more than {} entries", limits.max_entries)));
    }
    if entries.saturating_mul(ends) > MAX_STEPS {
        return Err(Error::Refused("it holds too many zip files".to_owned()));
    }
    Ok(())
}

fn unreadable(error: zip::result::ZipError) -> Error {
    match error {
        // A directory that points past the end of the file, or before its beginning, is a broken zip, not a
        // broken disk.
        zip::result::ZipError::Io(error)
            if !matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) =>
        {
            Error::Io(error)
        }
        _ => Error::NotZip,
    }
}

/// Checks bytes as a package that was uploaded: they are admitted, or refused in a sentence that is not long.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_check(bytes: &[u8]) {
    use std::io::Write;
    let limits = Limits { max_entries: 20, max_expanded_bytes: 1 << 20, max_ratio: 100 };
    let mut file = tempfile::tempfile().expect("there is a place for temporary files");
    file.write_all(bytes).expect("it is small");
    match zip(&file, limits) {
        Ok(()) | Err(Error::NotZip) => {}
        Err(Error::Refused(reason)) => assert!(!reason.is_empty() && reason.len() < 8192, "{reason}"),
        Err(other) => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn limits() -> Limits {
        Limits { max_entries: 10, max_expanded_bytes: 4 << 20, max_ratio: 50 }
    }

    fn check(bytes: &[u8]) -> Result<()> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        zip(&file, limits())
    }

    fn stored() -> SimpleFileOptions {
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored)
    }

    fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in entries {
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
            writer.start_file(*name, options).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn refusal(bytes: &[u8]) -> String {
        match check(bytes) {
            Err(Error::Refused(reason)) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn an_ordinary_package_passes() {
        check(&zip_of(&[("main.py", b"def main(): pass"), ("lib/a.py", b"")])).unwrap();
        check(&zip_of(&[])).unwrap();
    }

    #[test]
    fn what_is_no_zip_is_told_apart() {
        let zip = zip_of(&[("main.py", b"pass")]);
        for bytes in [b"".as_slice(), b"not a zip file", b"PK\x05\x06", &zip[..zip.len() - 8], &zip[20..]] {
            assert!(matches!(check(bytes), Err(Error::NotZip)), "{bytes:?}");
        }
    }

    #[test]
    fn an_entry_cannot_leave_the_package() {
        assert!(refusal(&zip_of(&[("../evil.py", b"x")])).contains("leads out"));
        assert!(refusal(&zip_of(&[("/etc/cron.d/evil", b"x")])).contains("leads out"));
    }

    #[test]
    fn a_link_is_refused() {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        writer.add_symlink("link", "/etc/passwd", stored()).unwrap();
        assert!(refusal(&writer.finish().unwrap().into_inner()).contains("link"));
    }

    #[test]
    fn a_bomb_is_refused_without_being_expanded() {
        let zeros = vec![0; 3 << 20];
        assert!(refusal(&zip_of(&[("zeros", &zeros)])).contains("times its size"));
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for name in ["a", "b"] {
            writer.start_file(name, stored()).unwrap();
            writer.write_all(&zeros).unwrap();
        }
        assert!(refusal(&writer.finish().unwrap().into_inner()).contains("more than 4194304 bytes"));
    }

    #[test]
    fn a_lie_about_sizes_in_the_directory_does_not_add_up_to_less() {
        // The size in the directory is what counts here, so raising it must be noticed.
        let mut bytes = zip_of(&[("a", b"x")]);
        let at = bytes.windows(4).position(|w| w == ENTRY).unwrap();
        bytes[at + 24..at + 28].copy_from_slice(&(100_u32 << 20).to_le_bytes());
        assert!(refusal(&bytes).contains("expands to more than"));
    }

    #[test]
    fn many_entries_are_refused_whatever_the_directory_says() {
        let names: Vec<String> = (0..11).map(|n| n.to_string()).collect();
        let entries: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), b"".as_slice())).collect();
        assert!(refusal(&zip_of(&entries)).contains("more than 10 entries"));
        let mut many = ENTRY.repeat(41);
        many.extend(END);
        assert!(refusal(&many).contains("more than 10 entries"));
    }

    #[test]
    fn names_that_differ_only_in_how_they_are_written_are_one_file() {
        assert!(refusal(&zip_of(&[("a.py", b"1"), ("./a.py", b"2")])).contains("twice"));
    }

    #[test]
    fn a_signature_across_two_reads_is_counted() {
        let mut bytes = vec![b'x'; (64 << 10) - 2];
        for _ in 0..41 {
            bytes.extend(ENTRY);
            bytes.extend(vec![b'x'; (64 << 10) - 7]);
        }
        bytes.extend(END);
        assert!(refusal(&bytes).contains("more than 10 entries"));
    }
}
