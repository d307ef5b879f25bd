//! Takes the docstrings of native classes from their stub, so that `help()` tells what the stub tells: one text, in one place.
//! Each becomes a file, `docs/Class` or `docs/Class.member`, which `doc!` in src/py reads.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const STUB: &str = "python/longconn/_longconn.pyi";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={STUB}");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_PYTHON").is_none() {
        return Ok(());
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("docs");
    fs::create_dir_all(&folder)?;
    let stub = fs::read_to_string(STUB)?;
    let mut lines = stub.lines();
    let (mut class, mut member) = (String::new(), String::new());
    while let Some(line) = lines.next() {
        let depth = line.len() - line.trim_start().len();
        if let Some(name) = line.strip_prefix("class ") {
            class = identifier(name);
            member.clone_from(&class);
        } else if let Some(name) = line.strip_prefix("    def ") {
            member = format!("{class}.{}", identifier(name));
        } else if let Some(first) = line.trim_start().strip_prefix("\"\"\"") {
            write(&folder, &member, first, depth, &mut lines)?;
            member.clear();
        } else if depth <= 4 && line.contains(": ") && !line.trim_start().starts_with(')') {
            // an attribute: its docstring has no place in the module
            member.clear();
        }
    }
    Ok(())
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|each| each.is_alphanumeric() || *each == '_').collect()
}

/// From its first line on to the closing quotes, without the indentation of all.
fn write<'a>(
    folder: &Path,
    member: &str,
    first: &'a str,
    depth: usize,
    lines: &mut impl Iterator<Item = &'a str>,
) -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    let mut line = Some(first);
    while let Some(part) = line {
        if let Some(last) = part.strip_suffix("\"\"\"") {
            text.push_str(last);
            if !member.is_empty() {
                fs::write(folder.join(member), text.trim_end())?;
            }
            return Ok(());
        }
        text.push_str(part);
        text.push('\n');
        line = lines.next().map(|next| next.get(depth..).unwrap_or_default());
    }
    Err(format!("{STUB}: the docstring of {member} has no end").into())
}
