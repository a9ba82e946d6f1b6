//! The router behind the control socket, and the streaming of long answers.

use std::{
    future::{Future, IntoFuture as _},
    io,
    ops::ControlFlow,
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, Request, State},
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;
use tokio::{net::UnixListener, task::spawn_blocking};

use super::{
    Control, ControlError,
    capture::capture,
    instance::{Bound, ControlSocket},
    model::{
        EipChange, ErrorReply, Flow, FlowCount, FlowFilter, Flushed, ForwardChange, ReloadRequest,
    },
    reply::{self, Pieces, refusal},
    top::TopQuery,
    trace::TraceQuery,
};

type Shared = State<Arc<dyn Control>>;

/// Answers until `stop` is ready and the requests under way are done; then the socket is gone.
///
/// # Errors
/// The socket cannot be used in this runtime.
pub async fn serve(
    socket: ControlSocket,
    control: Arc<dyn Control>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Second handles, so that the sockets' own end with the lock.
    let listen = |bound: &Bound| UnixListener::from_std(bound.listener.try_clone()?);
    let view = match &socket.view {
        Some(bound) => {
            let router = router(Arc::clone(&control)).layer(from_fn(only_look));
            Some(tokio::spawn(axum::serve(listen(bound)?, router).into_future()))
        }
        None => None,
    };
    let served =
        axum::serve(listen(&socket.all)?, router(control)).with_graceful_shutdown(stop).await;
    // Nothing that it answers has to come to its end.
    if let Some(view) = view {
        view.abort();
    }
    served
}

/// Lets through what changes nothing.
async fn only_look(request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let error = "this is only for those who may change the gateway; use sudo, or become a member \
                 of the group of its other socket"
        .to_owned();
    (StatusCode::FORBIDDEN, Json(ErrorReply { error })).into_response()
}

/// # The paths
/// Reading is GET, changing is POST with a JSON body; an error is a 4xx or 5xx with
/// `{"error": "one line"}`.
pub fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/status", get(|control: Shared| call(control, Control::status)))
        .route("/v1/counters", get(|control: Shared| call(control, Control::counters)))
        .route("/v1/counted", get(|control: Shared| call(control, Control::counted)))
        .route("/v1/log", get(|control: Shared| call(control, Control::log)))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/count", get(flows_count))
        .route("/v1/flows/flush", post(flows_flush))
        .route(
            "/v1/top",
            get(|control: Shared, Query(query): Query<TopQuery>| {
                call(control, move |c| c.top(query))
            }),
        )
        .route(
            "/v1/trace",
            get(|control: Shared, Query(query): Query<TraceQuery>| {
                call(control, move |c| c.trace(&query))
            }),
        )
        .route("/v1/capture", post(capture))
        .route("/v1/eip", get(|control: Shared| call(control, Control::eip_list)))
        .route(
            "/v1/eip/add",
            post(|control: Shared, Json(change): Json<EipChange>| {
                call(control, move |c| c.eip_add(&change).and_then(|()| c.eip_list()))
            }),
        )
        .route(
            "/v1/eip/drain",
            post(|control: Shared, Json(change): Json<EipChange>| {
                call(control, move |c| c.eip_drain(&change).and_then(|()| c.eip_list()))
            }),
        )
        .route(
            "/v1/eip/remove",
            post(|control: Shared, Json(change): Json<EipChange>| {
                call(control, move |c| c.eip_remove(&change).and_then(|()| c.eip_list()))
            }),
        )
        .route("/v1/forward", get(|control: Shared| call(control, Control::forward_list)))
        .route(
            "/v1/forward/add",
            post(|control: Shared, Json(change): Json<ForwardChange>| {
                call(control, move |c| c.forward_add(&change).and_then(|()| c.forward_list()))
            }),
        )
        .route(
            "/v1/forward/remove",
            post(|control: Shared, Json(change): Json<ForwardChange>| {
                call(control, move |c| c.forward_remove(&change).and_then(|()| c.forward_list()))
            }),
        )
        .route(
            "/v1/reload",
            post(|control: Shared, Json(request): Json<ReloadRequest>| {
                call(control, move |c| c.reload(request.dry_run))
            }),
        )
        .route(
            "/v1/confirm",
            post(|control: Shared, Json(()): Json<()>| call(control, Control::confirm)),
        )
        .with_state(control)
}

/// Runs one call where it may block, and makes an answer of its result.
async fn call<T, F>(State(control): Shared, request: F) -> Response
where
    T: Serialize + Send + 'static,
    F: FnOnce(&dyn Control) -> Result<T, ControlError> + Send + 'static,
{
    match spawn_blocking(move || request(control.as_ref())).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => refusal(&error),
        Err(_) => refusal(&ControlError::Failed(
            "the gateway failed at this request; its log says where".to_owned(),
        )),
    }
}

async fn flows_count(control: Shared, Query(filter): Query<FlowFilter>) -> Response {
    call(control, move |control| Ok(FlowCount { count: control.count(&filter)? })).await
}

async fn flows_flush(control: Shared, Query(filter): Query<FlowFilter>) -> Response {
    call(control, move |control| Ok(Flushed { flushed: control.flush(&filter)? })).await
}

/// Bytes of JSON that are collected before they are sent.
const CHUNK: usize = 64 * 1024;
/// Chunks under way.
const CHUNKS: usize = 4;

/// One JSON array, one session a line, sent while the table is still being read.
async fn flows(State(control): Shared, Query(filter): Query<FlowFilter>) -> Response {
    let failed = "the gateway failed to list its sessions; its log says why";
    reply::stream("application/json", CHUNKS, failed, move |pieces| {
        send_flows(control.as_ref(), &filter, pieces)
    })
    .await
}

fn send_flows(
    control: &dyn Control,
    filter: &FlowFilter,
    sender: &Pieces,
) -> Result<(), ControlError> {
    let mut buffer = Vec::with_capacity(CHUNK + 512);
    let mut before: &[u8] = b"[\n";
    let mut failed = None;
    visit_matching(control, filter, |flow| {
        buffer.extend_from_slice(before);
        before = b",\n";
        if let Err(error) = serde_json::to_writer(&mut buffer, flow) {
            failed = Some(ControlError::Failed(format!("cannot write a session: {error}")));
            return ControlFlow::Break(());
        }
        if buffer.len() < CHUNK {
            return ControlFlow::Continue(());
        }
        let chunk = Bytes::from(std::mem::take(&mut buffer));
        match sender.blocking_send(Ok(chunk)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    buffer.extend_from_slice(if before == b"[\n" { b"[]\n" } else { b"\n]\n" });
    // The reader may be gone; then nobody wants to know.
    sender.blocking_send(Ok(Bytes::from(buffer))).unwrap_or_default();
    Ok(())
}

/// Shows the sessions that match, at most as many as the filter wants.
fn visit_matching(
    control: &dyn Control,
    filter: &FlowFilter,
    mut visit: impl FnMut(&Flow) -> ControlFlow<()>,
) -> Result<(), ControlError> {
    let mut left = filter.limit.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(());
    }
    control.flows_of(filter, &mut |flow| {
        left -= 1;
        visit(flow)?;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}
