//! The configuration file: read whole, checked whole, and only then believed.
//!
//! ```text
//! text --reader--> raw (every key, with its place) --validate + HostView--> Config --> notices
//! ```
//!
//! Faults are collected on the way and printed together, in file order. The flags of `natgw run`
//! enter at `raw` and take the same way.

mod defaults;
pub mod edit;
mod fault;
mod host;
mod log;
mod model;
mod notice;
mod parse;
mod raw;
mod reader;
mod validate;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

pub(crate) use self::model::words;
pub use self::{
    defaults::{BPF_DIR, CONFIG_FILE, NAME, ProfileDefaults, SESSIONS, STATE_DIR},
    fault::ConfigFaults,
    host::{HostError, HostInterface, HostView, Listener},
    log::{Ipfix, Log, LogFile, LogFormat, VpcField, VpcFormat},
    model::{
        AddressSource, Config, Endpoints, Filtering, Forward, Gateway, Mapping, Metrics, MssClamp,
        OneToOne, Pool, PoolAddress, PortRange, Profile, Protocol, Role, SnatRule, Timeouts,
        XdpMode,
    },
    notice::notices,
    parse::{duration, name},
};
use self::{
    fault::{At, Faults},
    raw::RawConfig,
};

/// What the command line says over the file's head; already valid in itself.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub name: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub xdp_mode: Option<XdpMode>,
}

/// `natgw run` without a file.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub public: Vec<String>,
    pub private: Vec<String>,
    pub eip: Vec<String>,
    pub source: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}; name the configuration file with -c FILE", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

/// Reads and validates a file.
///
/// # Errors
/// The file cannot be read, or every fault that it has.
pub fn load(path: &Path, overrides: &Overrides, host: &HostView) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let mut config = parse_text(&text, &path.display().to_string(), overrides, host)?;
    config.file = Some(path.to_owned());
    Ok(config)
}

/// Validates TOML text; `label` stands where a file's name would in messages.
///
/// # Errors
/// Every fault of the text.
pub fn parse_text(
    text: &str,
    label: &str,
    overrides: &Overrides,
    host: &HostView,
) -> Result<Config, ConfigFaults> {
    let mut faults = Faults::default();
    let (document, syntax) = DeTable::parse_recoverable(text);
    let readable = syntax.iter().all(|error| is_local(error.message()));
    let mut lines = Vec::new();
    for error in syntax {
        let offset = error.span().map_or(0, |span| span.start);
        lines.push(text[..text.floor_char_boundary(offset)].matches('\n').count());
        let at = At::Offset(offset);
        let (what, remedy) = match error.message() {
            "duplicate key" => ("the key is there twice".to_owned(), "remove one"),
            message
                if ["must be quoted", "invalid float", "invalid boolean"]
                    .iter()
                    .any(|unquoted| message.contains(unquoted)) =>
            {
                (format!("not TOML: {message}"), "write a word in quotes, such as \"auto\"")
            }
            message => {
                (format!("not TOML: {message}"), "see https://toml.io for how values are written")
            }
        };
        faults.add(at, what, remedy);
    }
    if !readable {
        return Err(faults.into_lines(label, text));
    }
    let mut meaning = Faults::default();
    let raw = RawConfig::from_toml(document.get_ref(), &mut meaning);
    let config = validate::config(&raw, overrides, host, &mut meaning);
    // A line that is no TOML has one fault, whatever was guessed of it.
    meaning.retain(|offset| !lines.contains(&text[..offset].matches('\n').count()));
    faults.append(meaning);
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(faults.into_lines(label, text)),
    }
}

/// Whether a document with this error of syntax still means something elsewhere. After any other
/// one, such as a bracket that is never closed, further faults would be guesses.
fn is_local(message: &str) -> bool {
    ["duplicate key", "must be quoted", "missing comma", "leading zero", "invalid "]
        .iter()
        .any(|local| message.contains(local))
        && !message.contains("multi-line")
}

/// The same checks for `natgw run --public ... --eip ...`; faults name the flag.
///
/// # Errors
/// Every fault of the flags.
pub fn from_flags(
    flags: &Flags,
    overrides: &Overrides,
    host: &HostView,
) -> Result<Config, ConfigFaults> {
    let mut faults = Faults::default();
    let raw = RawConfig::from_flags(flags);
    match validate::config(&raw, overrides, host, &mut faults) {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(faults.into_lines("", "")),
    }
}
