//! `[log]`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    super::{
        fault::{At, Faults, Located, nearest},
        log::{Ipfix, Log, LogFile, LogFormat, VpcField, VpcFormat},
        parse,
        raw::RawLog,
        reader::{Field, Strings},
    },
    word_field,
};

/// Files that are kept beside the one that is written, unless the file says otherwise.
const KEEP: u32 = 10;
const MOST_KEPT: u32 = 10_000;
/// 1 TB, in units of 1,000,000 bytes.
const LARGEST_MB: i64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Json,
    Vpc,
}

impl Word {
    const ALL: &'static [Self] = &[Self::Json, Self::Vpc];

    const fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Vpc => "vpc",
        }
    }
}

pub(super) fn resolve(raw: &RawLog, faults: &mut Faults) -> Option<Log> {
    let at = raw.at?;
    let format = word_field!(faults, "format", raw.format, Word, Word::Json);
    let path = raw.file.given().map(|text| path(text, faults));
    let ipfix = ipfix(raw, faults);
    if matches!((&raw.file, &raw.ipfix), (Field::Absent, Field::Absent)) {
        faults.add(
            at,
            "[log] has neither file nor ipfix: nowhere to write to",
            "add file = \"/var/log/natgw/flows.jsonl\", or leave out the section",
        );
    }
    let vpc = vpc(raw, format, faults);
    let period = |key, field: &Field<String>, faults: &mut Faults| duration(key, field, faults);
    let interval = period("interval", &raw.interval, faults);
    let bulk = period("bulk", &raw.bulk, faults);
    let rotate_every = period("rotate_every", &raw.rotate_every, faults);
    if let (Some(_), Some(text)) = (bulk, raw.bulk.given())
        && (format == Word::Vpc || path.is_none())
    {
        let what = "bulk records are JSON lines in a file";
        faults.add(text.at, what, "set file and format = \"json\", or leave out bulk");
    }
    let needs_file: [(&str, Option<At>); 4] = [
        ("rotate_mb", raw.rotate_mb.given().map(|it| it.at)),
        ("rotate_every", raw.rotate_every.given().map(|it| it.at)),
        ("keep", raw.keep.given().map(|it| it.at)),
        ("compress", raw.compress.given().map(|it| it.at)),
    ];
    for (key, at) in needs_file {
        if let (Some(at), Field::Absent) = (at, &raw.file) {
            faults.add(at, format!("{key} without file"), "name a file, or leave it out");
        }
    }
    let file = path.map(|path| LogFile {
        path,
        format: match format {
            Word::Json => LogFormat::Json,
            Word::Vpc => LogFormat::Vpc(vpc),
        },
        rotate_bytes: megabytes(raw, faults),
        rotate_every,
        keep: keep(raw, faults),
        compress: raw.compress.given().is_none_or(|value| value.value),
    });
    let opened = raw.opened.given().is_none_or(|value| value.value);
    Some(Log { file, ipfix, opened, interval, bulk })
}

fn path(text: &Located<String>, faults: &mut Faults) -> PathBuf {
    let path = Path::new(&text.value);
    if !path.is_absolute() || path.file_name().is_none() {
        faults.add(
            text.at,
            format!("file \"{}\" is not the absolute path of a file", text.value),
            "write file = \"/var/log/natgw/flows.jsonl\", say",
        );
    }
    path.to_owned()
}

fn ipfix(raw: &RawLog, faults: &mut Faults) -> Option<Ipfix> {
    let domain = match raw.ipfix_domain.given() {
        Some(number) => u32::try_from(number.value).unwrap_or_else(|_| {
            let what = format!("ipfix_domain = {} is no observation domain", number.value);
            faults.add(number.at, what, format!("write a number from 0 to {}", u32::MAX));
            0
        }),
        None => 0,
    };
    if let (Some(number), Field::Absent) = (raw.ipfix_domain.given(), &raw.ipfix) {
        let remedy = "add ipfix = \"192.0.2.5:4739\", or leave it out";
        faults.add(number.at, "ipfix_domain without ipfix", remedy);
    }
    let text = raw.ipfix.given()?;
    let remedy = "write the collector's address and UDP port, such as \"192.0.2.5:4739\"";
    match text.value.parse::<SocketAddr>() {
        Ok(collector) if collector.port() != 0 => Some(Ipfix { collector, domain }),
        Ok(_) => {
            faults.add(text.at, format!("\"{}\" has port 0, which is none", text.value), remedy);
            None
        }
        Err(_) => {
            let what = format!("\"{}\" is not an address with a port", text.value);
            faults.add(text.at, what, remedy);
            None
        }
    }
}

fn vpc(raw: &RawLog, format: Word, faults: &mut Faults) -> VpcFormat {
    if format != Word::Vpc {
        let places = [
            ("fields", raw.fields.given().map(|it| it.at)),
            ("constants", raw.constants.given().map(|it| it.at)),
        ];
        for (key, at) in places {
            if let Some(at) = at {
                let what = format!("{key} with format \"json\", which has fields of its own");
                faults.add(at, what, format!("write format = \"vpc\", or leave out {key}"));
            }
        }
    }
    let text = raw.fields.given();
    let list = text.map_or(VpcFormat::DEFAULT, |text| text.value.as_str());
    let at = text.map_or(At::Offset(0), |text| text.at);
    let mut fields: Vec<VpcField> = Vec::new();
    for word in list.split_whitespace() {
        match VpcField::from_word(word) {
            Some(field) if fields.contains(&field) => {
                faults.add(at, format!("field {word} is twice in fields"), "name it once");
            }
            Some(field) => fields.push(field),
            None => unknown(word, "field", at, faults),
        }
    }
    if fields.is_empty() && text.is_some() {
        faults.add(at, "fields names no field", format!("write \"{}\"", VpcFormat::DEFAULT));
    }
    VpcFormat { fields, constants: constants(&raw.constants, faults) }
}

fn constants(field: &Field<Strings>, faults: &mut Faults) -> BTreeMap<VpcField, String> {
    let mut constants = BTreeMap::new();
    let Some(list) = field.given() else { return constants };
    for item in &list.value.items {
        let Some((word, value)) = item.value.split_once('=') else {
            let what = format!("\"{}\" is no FIELD=VALUE", item.value);
            faults.add(item.at, what, "write \"account-id=123456789012\", say");
            continue;
        };
        let Some(name) = VpcField::from_word(word) else {
            unknown(word, "field", item.at, faults);
            continue;
        };
        if !name.may_be_constant() {
            let all: Vec<&str> = constant_fields().map(VpcField::word).collect();
            let what = format!("{word} is not the same in every record");
            faults.add(item.at, what, format!("what can be given is {}", all.join(", ")));
        } else if value.is_empty() || value.contains(char::is_whitespace) {
            let what =
                format!("\"{value}\" is no value: the fields of a record have blanks between");
            faults.add(item.at, what, "write it without blanks");
        } else if constants.insert(name, value.to_owned()).is_some() {
            faults.add(item.at, format!("{word} is given twice"), "give it once");
        }
    }
    constants
}

fn constant_fields() -> impl Iterator<Item = VpcField> {
    VpcField::ALL.iter().copied().filter(|field| field.may_be_constant())
}

fn unknown(word: &str, what: &str, at: At, faults: &mut Faults) {
    let words = VpcField::ALL.iter().map(|field| field.word());
    let remedy = match nearest(word, words) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("see docs/records.md for the {what}s there are"),
    };
    faults.add(
        at,
        format!("there is no {what} \"{word}\" in VPC flow logs of version 2 to 5"),
        remedy,
    );
}

/// Nothing for "0s".
fn duration(key: &str, field: &Field<String>, faults: &mut Faults) -> Option<Duration> {
    let text = field.given()?;
    let duration = faults.keep(text.at, parse::duration_value(&text.value))?;
    if duration.as_secs() > 7 * 86_400 {
        faults.add(text.at, format!("{key} is longer than a week"), "write at most \"7d\"");
    }
    Some(duration).filter(|duration| !duration.is_zero())
}

fn megabytes(raw: &RawLog, faults: &mut Faults) -> Option<u64> {
    let number = raw.rotate_mb.given()?;
    if !(0..=LARGEST_MB).contains(&number.value) {
        let what = format!("rotate_mb = {} is no size of a file", number.value);
        faults.add(number.at, what, format!("write 1 to {LARGEST_MB}, or 0 for no limit"));
        return None;
    }
    u64::try_from(number.value).ok().filter(|mb| *mb > 0).map(|mb| mb * 1_000_000)
}

fn keep(raw: &RawLog, faults: &mut Faults) -> u32 {
    let Some(number) = raw.keep.given() else { return KEEP };
    match u32::try_from(number.value) {
        Ok(keep @ 0..=MOST_KEPT) => keep,
        _ => {
            let what = format!("keep = {} is no number of files", number.value);
            faults.add(number.at, what, format!("write 0 to {MOST_KEPT}; the default is {KEEP}"));
            KEEP
        }
    }
}
