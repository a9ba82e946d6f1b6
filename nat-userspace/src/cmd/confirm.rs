//! `natgw confirm`.

use crate::cli::GatewayArgs;

use super::{Failure, client, converse};

pub(super) fn execute(gateway: &GatewayArgs) -> Result<(), Failure> {
    converse(async { Ok(client(gateway).post("/v1/confirm", &()).await?) })
}
