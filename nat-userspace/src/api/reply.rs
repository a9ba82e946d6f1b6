//! What an answer of the control socket is made of: a refusal, or pieces that are sent while the rest is still
//! being made.

use std::task::Poll;

use axum::{
    Json,
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{ControlError, model::ErrorReply};

pub(super) fn refusal(error: &ControlError) -> Response {
    let status = match error {
        ControlError::Refused(_) => StatusCode::CONFLICT,
        ControlError::NotFound(_) => StatusCode::NOT_FOUND,
        ControlError::WrongConfig(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ControlError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(ErrorReply { error: error.to_string() })).into_response()
}

/// Takes the pieces of an answer; an error says that nobody reads them any more.
pub(super) type Pieces = mpsc::Sender<Result<Bytes, ControlError>>;

/// Sends what `make` makes, where it may block. At most `under_way` pieces wait for a slow reader, who makes
/// `make` wait, and not the daemon grow. `failed`: what to say where it ends without a piece.
pub(super) async fn stream(
    content_type: &'static str,
    under_way: usize,
    failed: &str,
    make: impl FnOnce(&Pieces) -> Result<(), ControlError> + Send + 'static,
) -> Response {
    let (sender, mut pieces) = mpsc::channel(under_way);
    spawn_blocking(move || {
        if let Err(error) = make(&sender) {
            // The reader may be gone; then nobody wants to know.
            sender.blocking_send(Err(error)).unwrap_or_default();
        }
    });
    // An error before the first piece can still be told as one.
    let first = match pieces.recv().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return refusal(&error),
        None => return refusal(&ControlError::Failed(failed.to_owned())),
    };
    let mut first = Some(first);
    let body = stream::poll_fn(move |context| match first.take() {
        Some(piece) => Poll::Ready(Some(Ok(piece))),
        None => pieces.poll_recv(context),
    });
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}
