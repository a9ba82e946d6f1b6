//! Talks to a running gateway.

use std::{io, path::PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    capture::CaptureRequest,
    instance::{socket_path, view_socket_path},
    model::{ErrorReply, Flow},
};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no gateway named \"{name}\" is running: {} is not answered; start it with natgw run --name {name}, or name another with --name or --state-dir",
        socket.display()
    )]
    NotRunning { name: String, socket: PathBuf },
    #[error("cannot talk to gateway \"{name}\": {} is closed to this user; use sudo, or become a member of its group, or of natgw-view to look only", socket.display())]
    Forbidden { name: String, socket: PathBuf },
    #[error("cannot talk to gateway \"{name}\" at {}: {source}; is --state-dir right?", socket.display())]
    Connect { name: String, socket: PathBuf, source: io::Error },
    /// The gateway's own words.
    #[error("{0}")]
    Refused(String),
    /// The gateway's own words: one fault of the configuration a line.
    #[error("{0}")]
    WrongConfig(String),
    #[error("the gateway's answer broke off: {0}; its log says why")]
    Broken(#[from] hyper::Error),
    #[error("the gateway's answer is not understood: {0}; is natgw of the same version?")]
    Strange(#[from] serde_json::Error),
}

#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    socket: PathBuf,
    /// For those who may only look.
    view_socket: PathBuf,
}

impl Client {
    #[must_use]
    pub fn new(state_dir: &std::path::Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            socket: socket_path(state_dir, name),
            view_socket: view_socket_path(state_dir, name),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request("GET", path, Bytes::new()).await?;
        Ok(serde_json::from_slice(&body.collect().await?.to_bytes())?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let body = self.request("POST", path, Bytes::from(serde_json::to_vec(body)?)).await?;
        Ok(serde_json::from_slice(&body.collect().await?.to_bytes())?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn flows(&self, query: &str) -> Result<FlowStream, ClientError> {
        let body = self.request("GET", &format!("/v1/flows?{query}"), Bytes::new()).await?;
        Ok(FlowStream { body, rest: Vec::new() })
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn capture(&self, request: &CaptureRequest) -> Result<FlowStream, ClientError> {
        let body = Bytes::from(serde_json::to_vec(request)?);
        let body = self.request("POST", "/v1/capture", body).await?;
        Ok(FlowStream { body, rest: Vec::new() })
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Incoming, ClientError> {
        let stream = self.connect().await.map_err(|error| self.refused(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // What goes wrong on the connection goes wrong for the request, which says so.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "natgw")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Refused(format!("cannot ask for {path}: {error}")))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let text = response.into_body().collect().await?.to_bytes();
        let message = match serde_json::from_slice::<ErrorReply>(&text) {
            Ok(reply) => reply.error,
            Err(_) => format!(
                "the gateway answered {status}: {}; is natgw of the same version?",
                String::from_utf8_lossy(&text).trim()
            ),
        };
        // axum's own refusals of a body have the same status but no ErrorReply.
        Err(if status == StatusCode::UNPROCESSABLE_ENTITY {
            ClientError::WrongConfig(message)
        } else {
            ClientError::Refused(message)
        })
    }

    /// By the socket that this user may use.
    async fn connect(&self) -> io::Result<UnixStream> {
        match UnixStream::connect(&self.socket).await {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                UnixStream::connect(&self.view_socket).await.map_err(|_| error)
            }
            result => result,
        }
    }

    fn refused(&self, source: io::Error) -> ClientError {
        let (name, socket) = (self.name.clone(), self.socket.clone());
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { name, socket }
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { name, socket },
            _ => ClientError::Connect { name, socket, source },
        }
    }
}

/// An answer as it comes: sessions, one a line, or the bytes of a capture.
#[derive(Debug)]
pub struct FlowStream {
    body: Incoming,
    rest: Vec<u8>,
}

impl FlowStream {
    /// The next bytes of the JSON array; nothing at its end.
    ///
    /// # Errors
    /// The gateway broke off.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next sessions; nothing at the end. Not to be mixed with [`Self::bytes`].
    ///
    /// # Errors
    /// The gateway broke off, or speaks another language.
    pub async fn flows(&mut self) -> Result<Option<Vec<Flow>>, ClientError> {
        let Some(bytes) = self.bytes().await? else { return Ok(None) };
        self.rest.extend_from_slice(&bytes);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let mut flows = Vec::new();
        for line in lines.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b",").unwrap_or(line);
            if line.starts_with(b"{") {
                flows.push(serde_json::from_slice(line)?);
            }
        }
        Ok(Some(flows))
    }
}
