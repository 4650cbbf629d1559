package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/transport"
)

// Config says what a node is made of.
type Config struct {
	Data   string   // its data directory; made where it is missing
	Name   string   // of a new node; empty is the host's name
	Listen []string // addresses to serve at, besides the socket in Data
	// Insecure allows TCP beyond loopback without TLS, and believes whom its
	// clients claim to be.
	Insecure bool
	TLS      *tls.Config  // for TCP; nil is none
	Log      *slog.Logger // nil is slog.Default()

	// Join makes new data a part of the volume that the nodes at these
	// addresses hold. Data that is a part of a volume stays one of that, and is
	// refused where a node there says at once that it is not theirs.
	Join string
	// Advertise are the addresses that the other nodes of the volume are told;
	// none are those that the node listens at.
	Advertise []string
	// CatchUpBytesPerSecond limits what a node that is far behind is sent;
	// 0 is a default.
	CatchUpBytesPerSecond int64
	// VerifyEvery is how often the replicas are compared while this node leads;
	// 0 is a default, less is never.
	VerifyEvery time.Duration
	// ScrubBytesPerSecond limits what the node reads in the background to check
	// large payloads; 0 is a default, less is never.
	ScrubBytesPerSecond int64
	// Offline opens data that are there, gearsfs.ErrNotFound where they are not,
	// and does not look for the other nodes of its volume.
	Offline bool
}

// memorySoftLimit is where the garbage collector begins to work harder: below
// the 512 MiB that a node may need, by what lies outside of Go's heap.
const memorySoftLimit = 384 << 20

// tuneRuntime sets what the environment does not. A thread in fdatasync keeps
// its processor until the scheduler notices, so there are twice as many as
// cores: with 2 cores and 64 clients that gives a sixth more durable puts.
func tuneRuntime() {
	debug.SetMemoryLimit(memorySoftLimit)
	if os.Getenv("GOGC") == "" {
		tuneCollector()
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * runtime.NumCPU())
	}
	slackenMonitor() //nolint:errcheck // where it is not permitted all is as well, but slower
}

// Node is a node that runs in this process: a volume, and the sockets that it
// is served at. All methods are safe for concurrent use.
type Node struct {
	vol       *dgm.Volume
	listeners []*transport.Listener
	broken    chan error // holds the error after which the node can't go on
	log       *slog.Logger
	stop      context.CancelFunc
	owned     sync.WaitGroup // serving goroutines; end with stop

	closing  sync.Once
	closeErr error
}

// Start opens the data directory, making it where it is new, and serves it at
// the addresses and at the socket in it. It returns when the node serves, which
// needs no other node but for new data that is to join one; ctx may end the
// opening. Errors: gearsfs.ErrInUse, ErrForeign, ErrFormat, ErrDamaged,
// ErrInvalid for an address, what listening fails with, and those of dgm.Join.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	addrs, err := listenAddrs(cfg)
	if err == nil {
		err = checkAddrs(cfg)
	}
	if err != nil {
		return nil, err
	}
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	n := &Node{broken: make(chan error, 1), log: cfg.Log}
	// An address that is taken is found before the data are touched, and data
	// that can't be opened before a socket is made beside them.
	err = n.listen(addrs)
	if err == nil && len(cfg.Advertise) == 0 {
		cfg.Advertise, err = n.listensAt(cfg.Data)
	}
	if err == nil {
		n.vol, err = OpenVolume(ctx, cfg, n.fatal)
	}
	if err == nil {
		if inside, insideErr := socketIn(cfg.Data); insideErr == nil {
			err = n.listen([]transport.Addr{inside})
		}
	}
	if err != nil {
		return nil, errors.Join(err, n.abandon())
	}
	n.serve(cfg.TLS)
	return n, nil
}

// OpenVolume opens the volume in cfg.Data, making it where it is new, without
// serving it. fatal is told, possibly more than once, after what the process
// should end. It returns the errors of Start.
func OpenVolume(ctx context.Context, cfg Config, fatal func(error)) (*dgm.Volume, error) {
	tuneRuntime()
	named := cfg.Name != ""
	if !named {
		var err error
		if cfg.Name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("the host's name: %w", err)
		}
	}
	data, err := persist.Open(cfg.Data, persist.Options{Create: !cfg.Offline, Name: cfg.Name, Fatal: fatal})
	if err != nil {
		return nil, err
	}
	if named && !cfg.Offline && data.Identity().Name != cfg.Name {
		switch err := data.SetName(cfg.Name); {
		case errors.Is(err, gearsfs.ErrForeign):
			cmp.Or(cfg.Log, slog.Default()).Warn("the name is a new node's: this one keeps its own", "name", data.Identity().Name, "told", cfg.Name)
		case err != nil:
			return nil, errors.Join(err, data.Close())
		}
	}
	addrs := strings.Join(cfg.Advertise, ",")
	if cfg.Join != "" {
		err := dgm.Join(ctx, cfg.Join, dgm.JoinConfig{Data: data, Addrs: addrs, TLS: cfg.TLS, Log: cfg.Log})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("join %s: %w", cfg.Join, err), data.Close())
		}
	}
	return dgm.OpenVolume(ctx, dgm.VolumeConfig{
		Data: data, Root: Caller(), Clock: clock(), Version: Version(), Insecure: cfg.Insecure, TLS: cfg.TLS, Fatal: fatal, Log: cfg.Log,
		Addrs: addrs, SnapshotBytesPerSecond: cfg.CatchUpBytesPerSecond, VerifyEvery: cfg.VerifyEvery,
		ScrubBytesPerSecond: cfg.ScrubBytesPerSecond, Offline: cfg.Offline,
	})
}

func (n *Node) listen(addrs []transport.Addr) error {
	for _, addr := range addrs {
		l, err := transport.Listen(addr)
		if err != nil {
			return err
		}
		n.listeners = append(n.listeners, l)
	}
	return nil
}

// abandon undoes what Start did before it failed.
func (n *Node) abandon() error {
	var errs []error
	for _, l := range n.listeners {
		errs = append(errs, l.Close())
	}
	if n.vol != nil {
		errs = append(errs, n.vol.Close())
	}
	return errors.Join(errs...)
}

// serve accepts connections until Close.
func (n *Node) serve(tlsConfig *tls.Config) {
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	for _, l := range n.listeners {
		n.owned.Go(func() {
			if err := n.vol.Serve(ctx, l, tlsConfig); err != nil {
				n.fatal(fmt.Errorf("serve at %s: %w", l.Address(), err))
			}
		})
	}
}

// Address is where clients on this machine reach the node: the socket in its
// data directory, or else the first address that it listens at.
func (n *Node) Address() string {
	for _, l := range slices.Backward(n.listeners) {
		if l.Address().Network == "unix" {
			return l.Address().String()
		}
	}
	return n.listeners[0].Address().String()
}

// progressEvery is how often a node that catches up says so.
const progressEvery = 2 * time.Second

// WaitVoter returns when the node has caught up with the volume that it joined
// and votes; at once where it does already, and then without any other node.
// Until then it says in the log how far it is.
func (n *Node) WaitVoter(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() { // ends with ctx
		select {
		case err := <-n.broken:
			n.fatal(err) // for whoever asks Broken
			stop(fmt.Errorf("the node can't go on: %w", err))
		case <-ctx.Done():
		}
	}()
	var said time.Time
	err := n.vol.WaitVoter(ctx, func(s gearsfs.NodeStatus) {
		if now := time.Now(); now.Sub(said) >= progressEvery {
			said = now
			n.log.Info(catchingUp(s))
		}
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func catchingUp(s gearsfs.NodeStatus) string {
	line := "catching up: waiting to hear from the node that leads"
	if s.Leader != "" {
		line = fmt.Sprintf("catching up: entry %d of %d", s.Applied, max(s.Commit, s.Applied))
	}
	return strings.Join(append([]string{line}, s.Warnings...), "; ")
}

// fatal keeps the first error after which the node can't go on.
func (n *Node) fatal(err error) {
	select {
	case n.broken <- err:
	default:
	}
}

// Broken yields the error after which the node can't go on: the process should
// end.
func (n *Node) Broken() <-chan error { return n.broken }

// Local opens a session for a client in this process that checks permissions
// by itself, as the kernel does for a mount.
func (n *Node) Local(process string) (*dgm.Local, error) {
	return n.LocalWith(process, dgm.RemoteOptions{})
}

// LocalWith is Local, with how long calls wait for a node that leads and how the
// session lasts.
func (n *Node) LocalWith(process string, o dgm.RemoteOptions) (*dgm.Local, error) {
	caller := gearsfs.Root
	caller.Checked = true
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("the host's name: %w", err)
	}
	o.Client = dgm.Client{Caller: caller, Host: host, Process: process, PID: os.Getpid()}
	return n.vol.LocalWith(o)
}

// Figures are what the node knows of itself. Errors: gearsfs.ErrClosed.
func (n *Node) Figures() (dgm.Figures, error) { return n.vol.Figures() }

// Replicated says whether the volume is on several nodes that vote, now.
func (n *Node) Replicated() bool { return n.vol.Replicated() }

// Close stops serving, finishes what was accepted and closes the data
// directory. It is idempotent and waits.
func (n *Node) Close() error {
	n.closing.Do(func() {
		n.stop()
		n.owned.Wait()
		n.closeErr = n.vol.Close()
	})
	return n.closeErr
}

// SocketIn is the address of the unix socket in a data directory, at which the
// node is reached that has it open. Its error says why there can't be one:
// what a socket's path may be is narrower than a directory's.
func SocketIn(data string) (string, error) {
	addr, err := socketIn(data)
	return addr.String(), err
}

func socketIn(data string) (transport.Addr, error) {
	abs, err := filepath.Abs(data)
	if err != nil {
		return transport.Addr{}, fmt.Errorf("data directory %s: %w", data, err)
	}
	addr, err := transport.ParseAddr("unix:" + filepath.Join(abs, "sock"))
	if err != nil {
		return transport.Addr{}, fmt.Errorf("data directory %s: no socket can be in it: %w", data, err)
	}
	return addr, nil
}
