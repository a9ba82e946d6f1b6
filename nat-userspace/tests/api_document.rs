//! docs/api.md and docs/api.json say what the control socket answers, all of it.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use nat_userspace::api::schema;

const UPDATE: &str = "NATGW_UPDATE_DOCS";
const BEGIN: &str = "<!-- generated: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Compares with the file, or writes it where that is asked for.
fn is_up_to_date(name: &str, wanted: &str) {
    if env::var_os(UPDATE).is_some() {
        fs::write(path(name), wanted).expect(name);
    }
    let present = fs::read_to_string(path(name)).unwrap_or_default();
    assert!(
        present == wanted,
        "{name} is stale; {UPDATE}=1 cargo test -p nat-userspace --test api_document writes it anew"
    );
}

#[test]
fn the_schema_is_that_of_the_types() {
    let document = serde_json::to_string_pretty(&schema::document()).expect("JSON");
    is_up_to_date("docs/api.json", &(document + "\n"));
}

#[test]
fn the_table_of_paths_is_that_of_the_schema() {
    let text = fs::read_to_string(path("docs/api.md")).expect("docs/api.md");
    let (head, rest) = text.split_once(BEGIN).expect("the begin of the table");
    let (_, tail) = rest.split_once(END).expect("its end");
    let mut table = "| | path | does |\n| --- | --- | --- |\n".to_owned();
    for (method, path, summary) in schema::paths() {
        table += &format!("| {method} | `{path}` | {summary} |\n");
    }
    is_up_to_date("docs/api.md", &format!("{head}{BEGIN}{table}{END}{tail}"));
}

#[test]
fn every_path_that_the_server_answers_is_documented() {
    let server = fs::read_to_string(path("nat-userspace/src/api/server.rs")).expect("the router");
    let routes: BTreeSet<&str> = server
        .split('"')
        .filter(|text| text.starts_with("/v1/") && !text.contains(char::is_whitespace))
        .collect();
    let documented: BTreeSet<&str> = schema::paths().into_iter().map(|(_, path, _)| path).collect();
    assert_eq!(routes, documented, "add it to endpoints() in nat-userspace/src/api/schema.rs");
}
