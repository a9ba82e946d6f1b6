//! Changes written back into the file for `--save`: only what changed, comments and layout kept.
//!
//! Text in, text out; [`save`] is the one that touches the disk. What results is valid only as far
//! as the file was: read it again with [`super::load`] before use.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TomlError, Value, value};

use super::{defaults::NAME, model::Forward};

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("the file is not TOML any more: {0}; mend it, and natgw check it")]
    Toml(#[from] TomlError),
    #[error("the file has no [[pool]] named \"{0}\"; write the change into it by hand")]
    NoPool(String),
    #[error("the file already has {0}; nothing was written")]
    Present(String),
    #[error("the file does not have {0}; nothing was written")]
    Absent(String),
    #[error(
        "the file has {address} only as part of \"{prefix}\"; write by hand what remains of it"
    )]
    PartOfPrefix { address: Ipv4Addr, prefix: String },
    #[error(
        "{address} is the last address of pool \"{pool}\" in the file; remove the pool by hand"
    )]
    LastAddress { address: Ipv4Addr, pool: String },
    #[error("cannot write {}: {source}; the file is as it was", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// # Errors
/// The pool is not in the file, or has the address.
pub fn with_address(text: &str, pool: &str, address: Ipv4Addr) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let addresses = addresses(&mut document, pool)?;
    if position(addresses, address).is_some() {
        return Err(EditError::Present(format!("{address} in pool \"{pool}\"")));
    }
    let mut element = Value::from(address.to_string());
    // One element a line, where the others are written so.
    if let Some(last) = addresses.iter().last() {
        let prefix = last.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        let blank = prefix.rfind('\n').map_or(" ", |newline| &prefix[newline..]);
        *element.decor_mut() = toml_edit::Decor::new(blank, "");
    }
    addresses.push_formatted(element);
    Ok(document.to_string())
}

/// # Errors
/// The pool does not have the address, has no other, or has it as part of a prefix.
pub fn without_address(text: &str, pool: &str, address: Ipv4Addr) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let addresses = addresses(&mut document, pool)?;
    let Some(index) = position(addresses, address) else {
        return Err(EditError::Absent(format!("{address} in pool \"{pool}\"")));
    };
    let written = addresses.get(index).and_then(Value::as_str).unwrap_or_default();
    if written.parse::<Ipv4Net>().is_ok_and(|net| net.prefix_len() < 32) {
        return Err(EditError::PartOfPrefix { address, prefix: written.to_owned() });
    }
    if addresses.len() == 1 {
        return Err(EditError::LastAddress { address, pool: pool.to_owned() });
    }
    let removed = addresses.remove(index);
    // The new first element stands where the old one stood.
    if index == 0
        && let Some(first) = addresses.get_mut(0)
    {
        *first.decor_mut() = removed.decor().clone();
    }
    Ok(document.to_string())
}

/// # Errors
/// The file has this forward.
pub fn with_forward(text: &str, forward: &Forward) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let forwards = document.entry("forward").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(forwards) = forwards.as_array_of_tables_mut() else {
        return Err(EditError::Absent("[[forward]] sections that could be added to".to_owned()));
    };
    if forwards.iter().any(|table| is_forward(table, forward)) {
        return Err(EditError::Present(describe(forward)));
    }
    let mut table = Table::new();
    table.insert("protocol", value(forward.protocol.word()));
    table.insert("public", value(forward.public.to_string()));
    table.insert("private", value(forward.private.to_string()));
    forwards.push(table);
    Ok(document.to_string())
}

/// # Errors
/// The file does not have this forward.
pub fn without_forward(text: &str, forward: &Forward) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let forwards = document.get_mut("forward").and_then(Item::as_array_of_tables_mut);
    let found = forwards.and_then(|forwards| {
        let index = forwards.iter().position(|table| is_forward(table, forward))?;
        Some((forwards, index))
    });
    let Some((forwards, index)) = found else {
        return Err(EditError::Absent(describe(forward)));
    };
    forwards.remove(index);
    Ok(document.to_string())
}

/// Replaces the file by what `edit` makes of it, whole or not at all; its mode is kept.
///
/// # Errors
/// The edit is refused, or the file or its directory cannot be written.
pub fn save(
    path: &Path,
    edit: impl FnOnce(&str) -> Result<String, EditError>,
) -> Result<(), EditError> {
    let failed = |source| EditError::File { path: path.to_owned(), source };
    // What a link leads to is replaced, not the link.
    let target = fs::canonicalize(path).map_err(failed)?;
    let text = edit(&fs::read_to_string(&target).map_err(failed)?)?;
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = target.with_file_name(name);
    replace(&target, &new, &text).map_err(|source| {
        // The temporary file may not even be there; the first error is the one to tell.
        fs::remove_file(&new).unwrap_or_default();
        failed(source)
    })
}

fn replace(target: &Path, new: &Path, text: &str) -> io::Result<()> {
    use io::Write as _;
    let permissions = fs::metadata(target)?.permissions();
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(permissions.mode()).open(new)?;
    file.set_permissions(permissions)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, target)
}

fn addresses<'a>(document: &'a mut DocumentMut, pool: &str) -> Result<&'a mut Array, EditError> {
    let named = |table: &&mut Table| {
        table.get("name").map_or(NAME, |name| name.as_str().unwrap_or_default()) == pool
    };
    document
        .get_mut("pool")
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|pools| pools.iter_mut().find(named))
        .and_then(|table| table.get_mut("addresses"))
        .and_then(Item::as_array_mut)
        .ok_or_else(|| EditError::NoPool(pool.to_owned()))
}

/// The element that is, or contains, the address.
fn position(addresses: &Array, address: Ipv4Addr) -> Option<usize> {
    addresses.iter().position(|element| {
        let text = element.as_str().unwrap_or_default();
        text.parse() == Ok(address)
            || text.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&address))
    })
}

fn is_forward(table: &Table, forward: &Forward) -> bool {
    let text = |key: &str| table.get(key).and_then(Item::as_str).unwrap_or_default();
    text("protocol") == forward.protocol.word()
        && text("public").parse() == Ok(forward.public)
        && text("private").parse() == Ok(forward.private)
}

fn describe(forward: &Forward) -> String {
    let Forward { protocol, public, private } = forward;
    format!("the forward of {protocol} {public} to {private}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Protocol;

    const FILE: &str = "# ours\n[[pool]] # the only one\naddresses = [\n    \"198.51.100.10\", # web\n    \"198.51.100.16/30\",\n]\n\n[[forward]] # https\nprotocol = \"tcp\"\npublic = \"198.51.100.10:443\"\nprivate = \"10.0.1.5:8443\"\n\n[timeouts]\nudp = \"60s\" # short\n";

    fn address(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }

    fn forward(port: u16) -> Forward {
        Forward {
            protocol: Protocol::Tcp,
            public: format!("198.51.100.10:{port}").parse().expect("endpoints"),
            private: "10.0.1.5:8443".parse().expect("endpoints"),
        }
    }

    #[test]
    fn an_address_that_comes_and_goes_leaves_the_file_as_it_was() {
        let added = with_address(FILE, "default", address("198.51.100.11")).expect("added");
        assert!(
            added.contains("\n    \"198.51.100.16/30\",\n    \"198.51.100.11\",\n]"),
            "{added}"
        );
        assert!(added.contains("# web") && added.contains("# short"), "{added}");
        let removed = without_address(&added, "default", address("198.51.100.11"));
        assert_eq!(removed.expect("removed"), FILE);
    }

    #[test]
    fn addresses_on_one_line_stay_there() {
        let file = "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.10\"] # one\n";
        let added = with_address(file, "a", address("198.51.100.11")).expect("added");
        let expected = "addresses = [\"198.51.100.10\", \"198.51.100.11\"] # one\n";
        assert!(added.ends_with(expected), "{added}");
        let removed = without_address(&added, "a", address("198.51.100.10")).expect("removed");
        assert!(removed.ends_with("addresses = [\"198.51.100.11\"] # one\n"), "{removed}");
    }

    #[test]
    fn a_forward_that_comes_and_goes_leaves_the_others() {
        let added = with_forward(FILE, &forward(80)).expect("added");
        assert!(added.contains("public = \"198.51.100.10:80\""), "{added}");
        assert!(matches!(with_forward(&added, &forward(80)), Err(EditError::Present(_))));
        let removed = without_forward(&added, &forward(80)).expect("removed");
        assert_eq!(removed, FILE);
        let none = without_forward(FILE, &forward(443)).expect("removed");
        assert!(!none.contains("[[forward]]") && none.contains("# short"), "{none}");
    }

    #[test]
    fn what_the_file_cannot_say_is_refused() {
        let remove = |text: &str| without_address(FILE, "default", address(text));
        assert!(matches!(remove("198.51.100.17"), Err(EditError::PartOfPrefix { .. })));
        assert!(matches!(remove("203.0.113.1"), Err(EditError::Absent(_))));
        let add = |pool: &str, text: &str| with_address(FILE, pool, address(text));
        assert!(matches!(add("default", "198.51.100.17"), Err(EditError::Present(_))));
        assert!(matches!(add("other", "203.0.113.1"), Err(EditError::NoPool(_))));
        let last = "[[pool]]\naddresses = [\"198.51.100.10\"]\n";
        let result = without_address(last, "default", address("198.51.100.10"));
        assert!(matches!(result, Err(EditError::LastAddress { .. })));
        assert!(matches!(without_forward(FILE, &forward(80)), Err(EditError::Absent(_))));
    }

    #[test]
    fn a_saved_file_keeps_its_mode_and_a_refused_edit_keeps_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("natgw.toml");
        fs::write(&path, FILE).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        save(&path, |text| with_forward(text, &forward(80))).expect("saved");
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let saved = fs::read_to_string(&path).expect("the file");
        assert!(saved.contains("198.51.100.10:80"), "{saved}");
        save(&path, |text| with_forward(text, &forward(80))).expect_err("refused");
        assert_eq!(fs::read_to_string(&path).expect("the file"), saved);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }
}
