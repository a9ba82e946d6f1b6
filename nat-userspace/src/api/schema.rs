//! The control socket's paths and types as an OpenAPI 3.0 document, made from the types themselves.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    capture::CaptureRequest,
    counters::Counters,
    model::{
        AddressStatus, Counted, EipChange, ErrorReply, Flow, FlowCount, FlowFilter, Flushed,
        ForwardChange, ReloadRequest, Reloaded, Status,
    },
    top::{Top, TopQuery},
    trace::{Trace, TraceQuery},
};
use crate::{config::Forward, flowlog::LogStatus};

/// What one path does.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// GET: looks, by either socket. POST: changes something.
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    /// Members are parameters of the query.
    query: Option<Schema>,
    body: Option<Schema>,
    /// Nothing: a pcapng file.
    answer: Option<Schema>,
}

fn endpoints(types: &mut SchemaGenerator) -> Vec<Endpoint> {
    fn of<T: JsonSchema>(types: &mut SchemaGenerator) -> Schema {
        types.subschema_for::<T>()
    }
    let mut list = Vec::new();
    let mut add = |method, path, summary, query, body, answer| {
        let answer = Some(answer);
        list.push(Endpoint { method, path, summary, query, body, answer });
    };
    let filter = || Some(inlined::<FlowFilter>());
    add("GET", "/v1/status", "State, interfaces, addresses", None, None, of::<Status>(types));
    add(
        "GET",
        "/v1/counters",
        "The metrics, and the drops by reason",
        None,
        None,
        of::<Counters>(types),
    );
    let counted = of::<Counted>(types);
    add("GET", "/v1/counted", "How long the counters have counted", None, None, counted);
    let log = of::<LogStatus>(types);
    add("GET", "/v1/log", "Where records of sessions go, written and lost", None, None, log);
    let flows = of::<Vec<Flow>>(types);
    add("GET", "/v1/flows", "Live sessions, one a line", filter(), None, flows);
    let count = of::<FlowCount>(types);
    add("GET", "/v1/flows/count", "How many there are", filter(), None, count);
    let flushed = of::<Flushed>(types);
    add("POST", "/v1/flows/flush", "Ends sessions", filter(), None, flushed);
    let (query, top) = (Some(inlined::<TopQuery>()), of::<Top>(types));
    add("GET", "/v1/top", "Totals, fullness, and who talks most", query, None, top);
    let (packet, trace) = (Some(inlined::<TraceQuery>()), of::<Trace>(types));
    add("GET", "/v1/trace", "What would become of a packet", packet, None, trace);
    let addresses = of::<Vec<AddressStatus>>(types);
    add("GET", "/v1/eip", "Public addresses", None, None, addresses.clone());
    let change = Some(of::<EipChange>(types));
    for (path, summary) in [
        ("/v1/eip/add", "Adds an address to a pool"),
        ("/v1/eip/drain", "Gives an address no new sessions, and releases it"),
        ("/v1/eip/remove", "Ends the sessions of an address and removes it"),
    ] {
        add("POST", path, summary, None, change.clone(), addresses.clone());
    }
    let forwards = of::<Vec<Forward>>(types);
    add("GET", "/v1/forward", "Forwarded ports", None, None, forwards.clone());
    let change = Some(of::<ForwardChange>(types));
    for (path, summary) in
        [("/v1/forward/add", "Forwards a port"), ("/v1/forward/remove", "Forwards it no more")]
    {
        add("POST", path, summary, None, change.clone(), forwards.clone());
    }
    let (request, reloaded) = (of::<ReloadRequest>(types), of::<Reloaded>(types));
    add("POST", "/v1/reload", "Takes the changed file into use", None, Some(request), reloaded);
    let nothing = of::<()>(types);
    let confirmed = "Keeps a gateway that was started with --confirm";
    add("POST", "/v1/confirm", confirmed, None, Some(nothing.clone()), nothing);
    list.push(Endpoint {
        method: "POST",
        path: "/v1/capture",
        summary: "Packets as they come and leave, as a pcapng file that grows",
        query: None,
        body: Some(of::<CaptureRequest>(types)),
        answer: None,
    });
    list
}

fn inlined<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::openapi3().with(|it| it.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

/// Method, path and summary of everything that is answered.
#[must_use]
pub fn paths() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut types = SchemaSettings::openapi3().into_generator();
    endpoints(&mut types).into_iter().map(|it| (it.method, it.path, it.summary)).collect()
}

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let mut types = SchemaSettings::openapi3().into_generator();
    let failure = types.subschema_for::<ErrorReply>();
    let mut paths = Map::new();
    for endpoint in endpoints(&mut types) {
        let json = |schema: &Schema| json!({ "application/json": { "schema": schema } });
        let file = || json!({ "application/x-pcapng": { "schema": { "type": "string", "format": "binary" } } });
        let answer = endpoint.answer.as_ref().map_or_else(file, json);
        let mut operation = json!({
            "summary": endpoint.summary,
            "responses": {
                "200": { "description": "done", "content": answer },
                "default": { "description": "not done, and why", "content": json(&failure) },
            },
        });
        if let Some(query) = &endpoint.query {
            operation["parameters"] = parameters(query);
        }
        if let Some(body) = &endpoint.body {
            operation["requestBody"] = json!({ "required": true, "content": json(body) });
        }
        let methods = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        methods[endpoint.method.to_lowercase()] = operation;
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "natgw control socket",
            "version": "v1",
            "description": "HTTP over the unix socket STATE_DIR/NAME.sock; GET also over NAME.view.sock.",
        },
        "paths": paths,
        "components": { "schemas": types.take_definitions(true) },
    })
}

fn parameters(query: &Schema) -> Value {
    let members = query.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| json!({ "name": name, "in": "query", "required": false, "schema": schema });
    members.map_or_else(|| json!([]), |members| members.iter().map(parameter).collect())
}
