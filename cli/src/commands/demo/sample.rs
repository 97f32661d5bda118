//! The demo's application: a shell script with data that it reads bit by bit.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Parts that the application reads one after the other, only when told to go on.
pub(super) const PARTS: usize = 12;

/// Parts that differ between versions; the others are the same bytes and are stored once.
const CHANGED_PARTS: usize = 2;

/// Bytes of a part: several blocks, so that reading its first line fetches only a piece of it.
const PART_BYTES: usize = 1 << 20;

/// The application, relative to its directory. It uses the shell's own commands only.
pub(super) const PROGRAM: &str = "bin/hello";

const SCRIPT: &str = r#"#!/bin/sh
# Started in the package's directory: everything is found by relative paths.
read -r version < share/version
echo "started $version"
read -r go
for part in share/parts/*; do
    read -r line < "$part"
    echo "$line"
done
read -r version < share/version
echo "finished $version"
"#;

/// First line of part `index` in the tree whose changed parts say `version`.
pub(super) fn first_line(index: usize, version: &str) -> String {
    if index < CHANGED_PARTS { format!("part {index} of {version}") } else { format!("part {index} of every version") }
}

/// Writes the application's tree.
pub(super) fn write(dir: &Path, version: &str) -> io::Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    fs::create_dir_all(dir.join("share/parts"))?;
    let program = dir.join(PROGRAM);
    fs::write(&program, SCRIPT)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::write(dir.join("share/version"), format!("{version}\n"))?;
    for index in 0..PARTS {
        let mut part = io::BufWriter::new(fs::File::create(dir.join(format!("share/parts/{index:02}")))?);
        writeln!(part, "{}", first_line(index, version))?;
        part.write_all(&noise(index as u64 + 1, PART_BYTES))?;
        part.flush()?;
    }
    Ok(())
}

/// Bytes that do not compress: xorshift64 (G. Marsaglia, 2003). The same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_application_runs_from_a_plain_directory() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1.0").unwrap();
        let mut child = Command::new(dir.path().join(PROGRAM))
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), PARTS + 2);
        assert_eq!((lines[0].as_str(), lines[1].as_str()), ("started 1.0", "part 0 of 1.0"));
        assert_eq!(lines[PARTS + 1], "finished 1.0");
    }
}
