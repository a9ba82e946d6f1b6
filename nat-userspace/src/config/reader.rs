//! Typed reading of a spanned TOML table that goes on after a fault.
//!
//! serde stops at the first error; an operator wants all of them. The reader knows the keys of a
//! table, reports those that do not belong there, and hands out values as [`Field`]s, so that
//! validation can tell "not written" from "written wrongly" and reports each fault once.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::fault::{At, Faults, Located, nearest};

/// One key of a table.
#[derive(Debug, Clone, Default)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    /// Written, but already reported: say no more about it.
    Faulty,
    Given(Located<T>),
}

impl<T> Field<T> {
    pub(super) fn given(&self) -> Option<&Located<T>> {
        match self {
            Self::Given(located) => Some(located),
            Self::Absent | Self::Faulty => None,
        }
    }

    pub(super) fn flag(flag: &'static str, value: T) -> Self {
        Self::Given(Located { value, at: At::Flag(flag) })
    }
}

/// A list of strings; `whole` is false when an element was no string and has been reported.
#[derive(Debug, Clone, Default)]
pub(super) struct Strings {
    pub(super) items: Vec<Located<String>>,
    pub(super) whole: bool,
}

/// A word or a number, for keys that take either.
#[derive(Debug, Clone)]
pub(super) enum Scalar {
    Word(String),
    Number(i64),
}

pub(super) struct TableReader<'a, 'i, 'f> {
    table: &'a DeTable<'i>,
    /// Values of misspelt keys, by the key that was probably meant: read as such, so that a slip is
    /// one fault and hides no other.
    meant: Vec<(&'static str, &'a Spanned<DeValue<'i>>)>,
    header: &'static str,
    pub(super) at: At,
    faults: &'f mut Faults,
}

impl<'a, 'i, 'f> TableReader<'a, 'i, 'f> {
    pub(super) fn new(
        table: &'a DeTable<'i>,
        at: At,
        header: &'static str,
        keys: &[&'static str],
        faults: &'f mut Faults,
    ) -> Self {
        let mut meant = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if keys.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, keys.iter().copied()) {
                Some(near) => {
                    meant.push((near, value));
                    format!("did you mean \"{near}\"?")
                }
                None => format!("the keys here are {}", keys.join(", ")),
            };
            faults.add(offset(key), format!("unknown key \"{name}\" in {header}"), remedy);
        }
        Self { table, meant, header, at, faults }
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        let misspelt =
            || self.meant.iter().find(|(meant, _)| *meant == key).map(|(_, value)| *value);
        self.table.get(key).or_else(misspelt)
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        convert: impl FnOnce(&DeValue<'i>) -> Option<T>,
    ) -> Field<T> {
        let Some(value) = self.value(key) else { return Field::Absent };
        let at = offset(value);
        match convert(value.get_ref()) {
            Some(value) => Field::Given(Located { value, at }),
            None => {
                let found = kind(value.get_ref());
                self.faults.add(at, format!("{key} is {found}"), format!("write {wanted}"));
                Field::Faulty
            }
        }
    }

    /// `example` is TOML text that would be right, such as `"350s"` with its quotes.
    pub(super) fn string(&mut self, key: &'static str, example: &str) -> Field<String> {
        self.read(key, &format!("a string such as {key} = {example}"), |value| {
            value.as_str().map(str::to_owned)
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Field<bool> {
        self.read(key, &format!("{key} = true or {key} = false, without quotes"), DeValue::as_bool)
    }

    pub(super) fn integer(&mut self, key: &'static str, example: i64) -> Field<i64> {
        self.read(key, &format!("a whole number without quotes such as {key} = {example}"), integer)
    }

    pub(super) fn word_or_integer(&mut self, key: &'static str, wanted: &str) -> Field<Scalar> {
        self.read(key, wanted, |value| match value {
            DeValue::String(word) => Some(Scalar::Word(word.to_string())),
            other => integer(other).map(Scalar::Number),
        })
    }

    pub(super) fn strings(&mut self, key: &'static str, example: &str) -> Field<Strings> {
        let Some(value) = self.value(key) else { return Field::Absent };
        let wanted = format!("a list of strings such as {key} = [{example}]");
        let at = offset(value);
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            other => {
                let what = format!("{key} is {}", kind(other));
                self.faults.add_last(at, what, format!("write {wanted}"));
                // A lone string is what its list would have held.
                if !other.is_str() {
                    return Field::Faulty;
                }
                vec![value]
            }
        };
        let mut list = Strings { items: Vec::new(), whole: true };
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => {
                    list.items.push(Located { value: text.to_owned(), at: offset(item) });
                }
                None => {
                    let found = kind(item.get_ref());
                    let what = format!("an element of {key} is {found}");
                    self.faults.add(offset(item), what, format!("write {wanted}"));
                    list.whole = false;
                }
            }
        }
        Field::Given(Located { value: list, at })
    }

    /// Reports a key that must be there and is not, at the table it is missing from.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        field: Field<T>,
    ) -> Field<T> {
        if !matches!(field, Field::Absent) {
            return field;
        }
        let header = self.header;
        self.faults.add(
            self.at,
            format!("{header} has no {key}"),
            format!("add {key} = {example}"),
        );
        Field::Faulty
    }
}

/// The place of a key or value in the file.
pub(super) fn offset<T>(spanned: &Spanned<T>) -> At {
    At::Offset(spanned.span().start)
}

/// What a TOML value is, in the words of a message.
pub(super) fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("a string ({text:?})"),
        DeValue::Integer(number) => format!("a whole number ({number})"),
        DeValue::Float(number) => format!("a fraction ({number})"),
        DeValue::Boolean(value) => format!("a boolean ({value})"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}
