//! The loop: the kernel's events, the clock, the signals.

use std::{
    collections::BTreeSet,
    future::pending,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, RingBuf};
use nat_common::event::{Event, kind};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant as Moment, MissedTickBehavior, interval, sleep_until},
};

use super::{
    RunOptions,
    control::Controller,
    edit::release_drained,
    gateway::{Gateway, answered_addresses},
    neighbours::{Neighbours, conflicts},
    reload::end_disallowed,
    start::start,
};
use crate::{
    api::{Control as _, instance::Instance, model::GatewayState, server},
    cli::OnExit,
    config::Config,
    datapath::Fit,
    expire::Sweeper,
    metrics,
    netdev::{Changes, Netdev, Snapshot, Watch},
    service,
};

/// Events of one cause come in swarms: so long is gathered before anything is read anew.
const SETTLE: Duration = Duration::from_millis(50);
/// How long the start waits for the default gateways' Ethernet addresses.
const NEXT_HOPS: Duration = Duration::from_secs(1);
/// How long the start waits for an objection to its public addresses; later ones count as well.
const PROBE: Duration = Duration::from_millis(300);
/// How long answers under way may still take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Tables of hosts and permits are cleaned this often.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Events of the dataplane taken in one go.
const EVENTS: usize = 256;

/// Why the loop ended.
enum End {
    Signal,
    Unconfirmed(Duration),
}

/// Serves until a signal.
///
/// # Errors
/// The gateway cannot start, could not go on, or nobody confirmed it.
pub fn run(config: Config, options: RunOptions) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop; check the limits on open files")?;
    let result = runtime.block_on(serve(config, options));
    runtime.shutdown_timeout(LAST_ANSWERS);
    result
}

async fn serve(config: Config, options: RunOptions) -> Result<()> {
    // Before anything else, so that a signal during the start is kept for the loop.
    let mut signals = Signals::listen()?;
    let instance = Instance::claim(&config.gateway.state_dir, &config.gateway.name)?;
    let metrics_listener = match config.metrics.listen {
        Some(listen) => Some(metrics::bind(listen).await?),
        None => None,
    };
    let netdev = Netdev::connect()?;
    let mut watch = Watch::open()?;
    let mut changes = Changes::default();
    let snapshot = netdev.snapshot().await?;
    let mut neighbours = Neighbours::default();
    let failed =
        look_around(&config, &snapshot, &netdev, &mut neighbours, &mut watch, &mut changes).await?;
    let mut gateway = start(config, options, snapshot, failed)?;
    gateway.datapath.set_routing(by_addresses(&netdev).await)?;
    let ring =
        gateway.datapath.events().context("the events of the dataplane are taken already")?;
    // SAFETY: the ring owns its one descriptor until it is dropped, and always names that one.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(std::io::Error::from)
        .context("cannot wait for events of the dataplane")?;

    gateway.announce_all();

    let socket = instance.listen()?;
    gateway.phase = GatewayState::Ready;
    gateway.unconfirmed_until = gateway.options.confirm.map(|time| Instant::now() + time);
    let summary = gateway.summary();
    let gateway = Arc::new(Mutex::new(gateway));
    let control = Arc::new(Controller::new(Arc::clone(&gateway)));
    let (stop, stopped) = watch::channel(());
    let mut servers = Vec::new();
    servers.push(serving(server::serve(socket, control.clone(), ended(stopped.clone()))));
    if let Some(listener) = metrics_listener {
        servers.push(serving(metrics::serve(listener, control.clone(), ended(stopped))));
    }
    service::ready(&summary);
    log::info!("{summary}");

    let fit = Fit::new(&lock(&gateway).datapath);
    let mut daemon = Daemon {
        gateway,
        control,
        netdev,
        neighbours,
        fit,
        sweeper: Sweeper::default(),
        sweeping: false,
        releasing: None,
        forgetting: None,
        forgot: Instant::now(),
    };
    let result = daemon.run(&mut watch, changes, ring, &mut signals).await;
    service::stopping(lock(&daemon.gateway).farewell(&result));
    drop(stop);
    let result = daemon.leave(result);
    for server in servers {
        // One that does not end in time is dropped with the runtime.
        tokio::time::timeout(LAST_ANSWERS, server).await.ok();
    }
    result
}

/// Whether what was found out about a pair of hosts holds for all their packets. If that is not to be known, it
/// is not taken for granted.
async fn by_addresses(netdev: &Netdev) -> bool {
    netdev.routes_by_addresses().await.unwrap_or_else(|error| {
        log::warn!("{error}; the route of every new session is looked up");
        false
    })
}

/// Before anything is attached: the next hops of the public interfaces are resolved, and the public
/// addresses probed. Returns those that another machine has.
async fn look_around(
    config: &Config,
    snapshot: &Snapshot,
    netdev: &Netdev,
    neighbours: &mut Neighbours,
    watch: &mut Watch,
    changes: &mut Changes,
) -> Result<BTreeSet<Ipv4Addr>> {
    let links = config.gateway.public.iter().filter_map(|name| snapshot.link(name));
    let public: Vec<u32> = links.map(|link| link.ifindex).collect();
    let probed = answered_addresses(config, snapshot);
    neighbours.probe(netdev, &public, &probed).await?;
    let unresolved = neighbours.keep_gateways(netdev, &public).await?;
    let at_least = if probed.is_empty() { Duration::ZERO } else { PROBE };
    Neighbours::wait_for(unresolved, watch, changes, at_least, NEXT_HOPS).await?;
    let own: BTreeSet<[u8; 6]> = snapshot.links.values().map(|link| link.mac.0).collect();
    let mut failed = BTreeSet::new();
    for (address, mac) in conflicts(&changes.neighbours, &public, &probed, &own) {
        if failed.insert(address) {
            log::error!(
                "{address} belongs to another machine ({mac}); it is not used until a reload or a \
                 new start finds it free"
            );
        }
    }
    Ok(failed)
}

fn serving(server: impl Future<Output = std::io::Result<()>> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async {
        if let Err(error) = server.await {
            log::error!("a server has ended: {error}; restart the gateway");
        }
    })
}

/// Ready when the other half is dropped.
async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

struct Daemon {
    gateway: Arc<Mutex<Gateway>>,
    control: Arc<Controller>,
    netdev: Netdev,
    neighbours: Neighbours,
    fit: Fit,
    sweeper: Sweeper,
    /// The walk over the sessions is under way.
    sweeping: bool,
    releasing: Option<JoinHandle<()>>,
    forgetting: Option<JoinHandle<()>>,
    forgot: Instant,
}

impl Daemon {
    async fn run(
        &mut self,
        watch: &mut Watch,
        mut changes: Changes,
        mut ring: AsyncFd<RingBuf<MapData>>,
        signals: &mut Signals,
    ) -> Result<End> {
        let Signals { terminate, interrupt, hangup, reopen } = signals;
        let mut clock = interval(Duration::from_secs(1));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What happened during the start has settled by now.
        let mut settled = Some(Moment::now());
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(End::Signal),
                _ = interrupt.recv() => return Ok(End::Signal),
                _ = clock.tick() => {
                    if let Some(end) = self.tick()? {
                        return Ok(end);
                    }
                    let (public, addresses) = {
                        let mut gateway = lock(&self.gateway);
                        (gateway.public_interfaces(), std::mem::take(&mut gateway.to_probe))
                    };
                    self.neighbours.probe(&self.netdev, &public, &addresses).await?;
                }
                () = at(settled) => {
                    settled = None;
                    self.follow(std::mem::take(&mut changes)).await?;
                }
                event = watch.changes(&mut changes) => {
                    event?;
                    settled.get_or_insert_with(|| Moment::now() + SETTLE);
                }
                wanted = missed_next_hops(&mut ring) => {
                    for (ifindex, address) in wanted? {
                        self.neighbours.ask(&self.netdev, ifindex, address.into()).await;
                    }
                }
                _ = hangup.recv() => self.reload().await,
                _ = reopen.recv() => {
                    if let Some(log) = &lock(&self.gateway).flow_log {
                        log.reopen();
                    }
                }
                () = std::future::ready(()), if self.sweeping => {
                    self.sweep()?;
                    // Between two slices everything else has its turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn tick(&mut self) -> Result<Option<End>> {
        self.sweeping = true;
        service::alive();
        let mut gateway = lock(&self.gateway);
        gateway.tick()?;
        if gateway.confirm_left().is_some_and(|left| left.is_zero()) {
            return Ok(Some(End::Unconfirmed(gateway.options.confirm.unwrap_or_default())));
        }
        let draining = !gateway.draining.is_empty();
        let forgetter = gateway.datapath.forgetter();
        drop(gateway);
        if self.forgot.elapsed() >= FORGET_EVERY
            && self.forgetting.as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.forgot = Instant::now();
            self.forgetting = Some(spawn_blocking(move || {
                if let Err(error) = forgetter.run() {
                    log::warn!("cannot clean the tables of hosts and permits: {error}");
                }
            }));
        }
        // A walk over the sessions: not on this thread, and one at a time.
        if draining && self.releasing.as_ref().is_none_or(JoinHandle::is_finished) {
            let control = Arc::clone(&self.control);
            self.releasing = Some(spawn_blocking(move || {
                if let Err(error) = release_drained(&control) {
                    log::warn!("cannot release a drained address: {error}");
                }
            }));
        }
        Ok(None)
    }

    /// Takes changes of links, addresses, routes and neighbours into use.
    async fn follow(&mut self, changes: Changes) -> Result<()> {
        let Changes { links, mut routes, mut default_routes, neighbours: mut list, lost } = changes;
        if lost {
            log::warn!("events of the kernel were lost; reading everything anew");
            list = self.netdev.neighbours().await?;
        }
        if links || lost {
            let snapshot = self.netdev.snapshot().await?;
            if lock(&self.gateway).follow_host(snapshot)? {
                let control = Arc::clone(&self.control);
                // A walk over the sessions: not on this thread. It says itself how it ended.
                drop(spawn_blocking(move || match end_disallowed(&control) {
                    Ok(ended) => log::info!("{ended} sessions of the old address ended"),
                    Err(error) => log::warn!("cannot end sessions of the old address: {error}"),
                }));
            }
            // A new address brings routes, and a new link new neighbours.
            routes |= links;
            default_routes = true;
        }
        let mut stale_next_hops = self.neighbours.resync(&list);
        let (ours, public) = {
            let mut gateway = lock(&self.gateway);
            let public = gateway.public_interfaces();
            let (answered, own) = (gateway.answered_addresses(), gateway.own_macs());
            gateway.mark_failed(&conflicts(&list, &public, &answered, &own))?;
            (gateway.all_interfaces(), public)
        };
        for (ifindex, address) in Neighbours::stale(&list, &ours) {
            self.neighbours.ask(&self.netdev, ifindex, address).await;
        }
        if default_routes {
            self.neighbours.keep_gateways(&self.netdev, &public).await?;
        }
        stale_next_hops |= routes || lost;
        let routing = if routes || lost { Some(by_addresses(&self.netdev).await) } else { None };
        if stale_next_hops {
            let mut gateway = lock(&self.gateway);
            if let Some(by_addresses) = routing {
                gateway.datapath.set_routing(by_addresses)?;
            }
            gateway.datapath.bump_epoch()?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        let mut gateway = lock(&self.gateway);
        // Who is to be ended is not judged while the cache changes its size.
        self.sweeping =
            self.fit.step(&mut gateway.datapath)? || self.sweeper.step(&gateway.datapath)?;
        gateway.sweep_time = self.sweeper.last_second();
        Ok(())
    }

    async fn reload(&self) {
        service::reloading();
        let control = Arc::clone(&self.control);
        match spawn_blocking(move || control.reload(false)).await {
            Ok(Ok(reloaded)) => log::info!(
                "reloaded: {} changes, {} sessions ended",
                reloaded.steps.len(),
                reloaded.sessions_ended
            ),
            Ok(Err(error)) => log::error!("cannot reload, the old configuration stays: {error}"),
            Err(error) => log::error!("cannot reload, the old configuration stays: {error}"),
        }
        service::ready(&lock(&self.gateway).summary());
    }

    /// What is left behind.
    fn leave(&self, result: Result<End>) -> Result<()> {
        let mut gateway = lock(&self.gateway);
        gateway.phase = GatewayState::Stopping;
        gateway.end_capture();
        gateway.stop_slow_path();
        // Takes what is in the ring.
        gateway.flow_log = None;
        match result {
            Ok(End::Signal) => match gateway.options.on_exit {
                OnExit::Stop => {
                    for (interface, _) in gateway.datapath.attached() {
                        gateway.datapath.detach_xdp(&interface)?;
                    }
                    log::info!("{STOPPED}");
                    Ok(())
                }
                OnExit::Keep => {
                    log::info!("{KEPT}");
                    Ok(())
                }
            },
            Ok(End::Unconfirmed(time)) => {
                gateway.take_down();
                bail!(
                    "nobody confirmed within {} s: everything is detached again; start anew and \
                     run natgw confirm in time",
                    time.as_secs()
                );
            }
            // Like a crash: the dataplane goes on alone, the next start adopts it.
            Err(error) => {
                Err(error.context("the daemon cannot go on; the dataplane goes on alone"))
            }
        }
    }
}

/// What is left of the gateway, for its log and for the service manager.
const STOPPED: &str = "stopped: sessions and guard stay, natgw detach removes them";
const KEPT: &str = "the dataplane goes on alone; natgw detach removes it";

impl Gateway {
    fn farewell(&self, result: &Result<End>) -> &'static str {
        match result {
            Ok(End::Signal) if self.options.on_exit == OnExit::Stop => STOPPED,
            Ok(End::Unconfirmed(_)) => "nobody confirmed: everything is detached",
            _ => KEPT,
        }
    }
}

/// Panics are not carried on: a thread that panicked has left the gateway as it was between two
/// writes to the maps, which each stand alone.
pub(super) fn lock(gateway: &Mutex<Gateway>) -> std::sync::MutexGuard<'_, Gateway> {
    gateway.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn at(moment: Option<Moment>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Next hops that the dataplane could not resolve. Cancel safe: it waits only before it takes.
async fn missed_next_hops(
    ring: &mut AsyncFd<RingBuf<MapData>>,
) -> Result<Vec<(u32, nat_common::net::Ip4)>> {
    let mut guard = ring.readable_mut().await.context("cannot wait for the dataplane")?;
    let mut wanted = Vec::new();
    let mut taken = 0;
    while taken < EVENTS {
        let Some(item) = guard.get_inner_mut().next() else {
            guard.clear_ready();
            break;
        };
        taken += 1;
        let Ok(event) = bytemuck::try_pod_read_unaligned::<Event>(&item) else { continue };
        match event.kind {
            kind::NEIGHBOUR => {
                let next_hop = (event.ifindex, event.address);
                if !wanted.contains(&next_hop) {
                    wanted.push(next_hop);
                }
            }
            kind::EXHAUSTED => log::debug!("no free port at {} for {:?}", event.address, event.key),
            kind::TABLE_FULL => log::debug!("the session table is full: {:?}", event.key),
            other => log::debug!("event of unknown kind {other}"),
        }
    }
    Ok(wanted)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// The log file was renamed.
    reopen: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            reopen: on(SignalKind::user_defined1())?,
        })
    }
}
