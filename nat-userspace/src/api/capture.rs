//! `natgw capture`: the request, and the answer, which is a pcapng file as it grows.

use std::{ops::ControlFlow, sync::Arc};

use axum::{Json, body::Bytes, extract::State, response::Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Control, model::EndpointFilter, reply};
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
    let failed = "the gateway failed to capture; its log says why";
    reply::stream("application/x-pcapng", PIECES, failed, move |pieces| {
        control.capture(&request, &mut |piece| {
            let gone = match piece.is_empty() {
                true => pieces.is_closed(),
                false => pieces.blocking_send(Ok(Bytes::from(piece))).is_err(),
            };
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    })
    .await
}
