//! `natgw capture`: the request, and the answer, which is a pcapng file as it grows.

use std::{io, ops::ControlFlow, sync::Arc};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{Control, ControlError, model::EndpointFilter, server::refusal};
use crate::config::Protocol;

/// Which packets, and for how long; everything that is given must match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Only what is dropped.
    #[serde(default)]
    pub drops: bool,
    /// Ends after so many packets; nothing: when the connection ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Ends after so many milliseconds; nothing: when the connection ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Bytes of each frame; nothing: all that a jumbo frame has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
}

/// Pieces under way; where the reader is slower, packets are lost and counted.
const PIECES: usize = 16;

/// What is written while it is captured. `deliver` gets pieces of the file, also empty ones, by
/// which it is asked whether anybody still reads.
pub type Deliver<'a> = dyn FnMut(Vec<u8>) -> ControlFlow<()> + 'a;

pub(super) async fn capture(
    State(control): State<Arc<dyn Control>>,
    Json(request): Json<CaptureRequest>,
) -> Response {
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes, ControlError>>(PIECES);
    spawn_blocking(move || {
        let mut deliver = |piece: Vec<u8>| {
            let gone = match piece.is_empty() {
                true => sender.is_closed(),
                false => sender.blocking_send(Ok(Bytes::from(piece))).is_err(),
            };
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if let Err(error) = control.capture(&request, &mut deliver) {
            // The reader may be gone; then nobody wants to know.
            sender.blocking_send(Err(error)).unwrap_or_default();
        }
    });
    // An error before the first piece can still be told as one.
    let first = match pieces.recv().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return refusal(&error),
        None => {
            return refusal(&ControlError::Failed(
                "the gateway failed to capture; its log says why".to_owned(),
            ));
        }
    };
    let mut first = Some(first);
    let body = stream::poll_fn(move |context| match first.take() {
        Some(piece) => std::task::Poll::Ready(Some(Ok(piece))),
        None => pieces.poll_recv(context).map(|piece| piece.map(|it| it.map_err(io::Error::other))),
    });
    ([(header::CONTENT_TYPE, "application/x-pcapng")], Body::from_stream(body)).into_response()
}
