//! `[log]` as the rest of the program sees it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::words;

/// Where records of sessions go: to at least one of `file` and `ipfix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub file: Option<LogFile>,
    pub ipfix: Option<Ipfix>,
    /// A record when a session opens, too.
    pub opened: bool,
    /// Sessions that live are reported so often.
    pub interval: Option<Duration>,
    /// One record for a host, address and protocol in so much time, instead of one for each session.
    pub bulk: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Absolute.
    pub path: PathBuf,
    pub format: LogFormat,
    pub rotate_bytes: Option<u64>,
    pub rotate_every: Option<Duration>,
    /// Rotated files that stay.
    pub keep: u32,
    /// Rotated files are compressed by gzip.
    pub compress: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Vpc(VpcFormat),
}

/// Which fields a VPC flow log record has, and what stands in those that the gateway cannot know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcFormat {
    pub fields: Vec<VpcField>,
    pub constants: BTreeMap<VpcField, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipfix {
    pub collector: SocketAddr,
    /// Observation domain (RFC 7011 section 3.1).
    pub domain: u32,
}

words!(
    /// Fields of the cloud's VPC flow logs, versions 2 to 5, in their documented order.
    VpcField {
        Version = "version",
        AccountId = "account-id",
        InterfaceId = "interface-id",
        Srcaddr = "srcaddr",
        Dstaddr = "dstaddr",
        Srcport = "srcport",
        Dstport = "dstport",
        Protocol = "protocol",
        Packets = "packets",
        Bytes = "bytes",
        Start = "start",
        End = "end",
        Action = "action",
        LogStatus = "log-status",
        VpcId = "vpc-id",
        SubnetId = "subnet-id",
        InstanceId = "instance-id",
        TcpFlags = "tcp-flags",
        Type = "type",
        PktSrcaddr = "pkt-srcaddr",
        PktDstaddr = "pkt-dstaddr",
        Region = "region",
        AzId = "az-id",
        SublocationType = "sublocation-type",
        SublocationId = "sublocation-id",
        PktSrcAwsService = "pkt-src-aws-service",
        PktDstAwsService = "pkt-dst-aws-service",
        FlowDirection = "flow-direction",
        TrafficPath = "traffic-path",
    }
);

impl VpcField {
    /// The version that brought the field.
    #[must_use]
    pub const fn version(self) -> u8 {
        match self {
            Self::VpcId
            | Self::SubnetId
            | Self::InstanceId
            | Self::TcpFlags
            | Self::Type
            | Self::PktSrcaddr
            | Self::PktDstaddr => 3,
            Self::Region | Self::AzId | Self::SublocationType | Self::SublocationId => 4,
            Self::PktSrcAwsService
            | Self::PktDstAwsService
            | Self::FlowDirection
            | Self::TrafficPath => 5,
            _ => 2,
        }
    }

    /// Whether it says where the gateway is, and not what a session was.
    #[must_use]
    pub const fn may_be_constant(self) -> bool {
        matches!(
            self,
            Self::AccountId
                | Self::InterfaceId
                | Self::VpcId
                | Self::SubnetId
                | Self::InstanceId
                | Self::Region
                | Self::AzId
                | Self::SublocationType
                | Self::SublocationId
        )
    }
}

impl VpcFormat {
    /// The default format of the cloud: version 2.
    pub const DEFAULT: &str = "version account-id interface-id srcaddr dstaddr srcport dstport \
                               protocol packets bytes start end action log-status";
}
