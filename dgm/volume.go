package dgm

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
	"github.com/gearsfs/gearsfs/wire"
)

// VolumeConfig says what a Volume is made of.
type VolumeConfig struct {
	// Data is the node's open data directory; the Volume closes it.
	Data *persist.Data
	// Name of the volume; empty is "main". It is used when Data is new.
	Name string
	// Root owns the root directory of a new volume.
	Root gearsfs.Caller
	// Clock is the node's clock; nil is time.Now.
	Clock func() time.Time
	// Version is the program's, for status.
	Version string
	// ReserveBytes is kept free on the disk: below it changes that need room
	// are refused with gearsfs.ErrNoSpace. 0 is 64 MiB.
	ReserveBytes uint64
	// Insecure believes whom a TCP client without TLS claims to be.
	Insecure bool
	// Addrs is where other nodes and their clients reach this one, separated by
	// commas; TLS is how this one dials others over TCP, nil for plainly.
	Addrs string
	TLS   *tls.Config
	// SnapshotBytesPerSecond bounds what this node sends to others that catch
	// up; 0 is 128 MiB.
	SnapshotBytesPerSecond int64
	// VerifyEvery is how often the leader has the replicas compared; 0 is an
	// hour, less is never.
	VerifyEvery time.Duration
	// Fatal is told that the volume can't go on (a failed write or fsync); the
	// process should end. It is called once at most, on any goroutine.
	Fatal func(error)
	// Log takes what is worth a line; nil is slog.Default().
	Log *slog.Logger
}

const reserveBytesDefault = 64 << 20

// Volume runs one replica of a volume in this process: the state machine
// behind its log, the operations that wait, and the sessions, local ones and
// those of clients that come over sockets. All methods are safe for concurrent
// use.
type Volume struct {
	cfg     VolumeConfig
	log     *slog.Logger
	machine *file.Machine
	group   *replica.Group
	door    door          // inside is who uses the machine for a caller
	ended   chan struct{} // closed when Close is done
	left    chan struct{} // closed when the door is shut and nobody is inside
	reads   chan struct{} // holds one for each bulky query that reads
	gate    gate
	space   space
	started time.Time

	// mu guards the sessions and what waits. It is never held over I/O or a
	// call into the replica that could wait; it is taken before the machine's
	// own lock, never while that is held.
	mu       sync.Mutex
	sessions map[gearsfs.SessionID]*session
	opens    map[gearsfs.Ino]int // over all sessions
	waits    waits
	offers   map[string][]*peer // the latest last
	passages map[passage]*peer
	links    map[string]*Remote // proxies by name, made when first used
	closed   bool

	replies replies
	watches watches
	root    context.Context // ends when the volume closes
	stop    context.CancelFunc
	owned   sync.WaitGroup // goroutines that end with root
	broken  atomic.Bool
}

// OpenVolume opens the volume whose replica is in cfg.Data, replaying its log,
// and makes it where the data is new. It returns when the volume serves.
func OpenVolume(ctx context.Context, cfg VolumeConfig) (*Volume, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Name == "" {
		cfg.Name = "main"
	}
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = reserveBytesDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	v := &Volume{
		cfg: cfg, log: cfg.Log, started: cfg.Clock(),
		sessions: make(map[gearsfs.SessionID]*session),
		opens:    make(map[gearsfs.Ino]int),
		offers:   make(map[string][]*peer),
		passages: make(map[passage]*peer),
		links:    make(map[string]*Remote),
		ended:    make(chan struct{}),
		left:     make(chan struct{}),
		reads:    make(chan struct{}, readsMax),
	}
	v.waits.init()
	v.watches.init()
	v.root, v.stop = context.WithCancel(context.Background())
	if err := v.open(ctx); err != nil {
		v.stop()
		v.owned.Wait()
		if v.group != nil {
			err = errors.Join(err, v.group.Close())
		}
		return nil, errors.Join(err, cfg.Data.Close())
	}
	return v, nil
}

func (v *Volume) open(ctx context.Context) error {
	machine, err := file.New(v.cfg.Data.State, v)
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	v.machine = machine
	v.space.init(v.cfg.Data, v.cfg.ReserveBytes, v.cfg.Clock)
	v.replies.init(&v.owned, v.root)
	v.group, err = replica.Open(replica.Config{
		ID: 1, Log: v.cfg.Data.Log, Machine: machine, Clock: v.cfg.Clock,
		Flush: v.cfg.Data.State.Flush, Fatal: v.fatal,
	})
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	if !machine.Initialised() {
		if err := v.initialise(ctx); err != nil {
			return err
		}
	}
	if err := v.adoptSessions(); err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	return nil
}

// initialise makes the empty volume, durably.
func (v *Volume) initialise(ctx context.Context) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("mint a volume id: %w", err)
	}
	uid, gid := v.cfg.Root.UID, uint32(0)
	if len(v.cfg.Root.GIDs) > 0 {
		gid = v.cfg.Root.GIDs[0]
	}
	answer, err := v.propose(ctx, &wire.Command{Op: &wire.Command_Init{
		Init: &wire.Init{Id: id, Name: v.cfg.Name, Uid: uid, Gid: gid},
	}})
	if err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	if err := gearsfs.FromCode(gearsfs.Code(answer.Code), answer.Reason); err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	return nil
}

// propose sends one of the volume's own commands and waits until its answer is
// on disk.
func (v *Volume) propose(ctx context.Context, cmd *wire.Command) (*wire.Answer, error) {
	type outcome struct {
		answer *wire.Answer
		err    error
	}
	done := make(chan outcome, 1)
	v.group.Propose(&replica.Proposal{Command: cmd, Durable: true, Done: func(a *wire.Answer, err error) {
		done <- outcome{a, err}
	}})
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fatal marks the volume as broken and tells its owner.
func (v *Volume) fatal(err error) {
	if v.broken.Swap(true) {
		return
	}
	v.log.Error("the volume can't go on", "error", err)
	if v.cfg.Fatal != nil {
		v.cfg.Fatal(err)
	}
}

// enter lets a caller use the machine until it leaves; not where the volume is
// closing.
func (v *Volume) enter() bool { return v.door.enter() }

func (v *Volume) leave() {
	if v.door.leave() {
		close(v.left)
	}
}

// Close ends what waits, finishes what was accepted, flushes the state and
// closes the data directory. The sessions of Locals are over; Remotes can go on
// with theirs when the volume is opened again. It is idempotent and waits.
func (v *Volume) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		<-v.ended
		return nil
	}
	v.closed = true
	defer close(v.ended)
	links := make([]*Remote, 0, len(v.links))
	for _, l := range v.links {
		links = append(links, l)
	}
	waiting := v.waits.all()
	v.mu.Unlock()

	for _, o := range waiting {
		o.cancel(gearsfs.ErrClosed)
	}
	v.watches.dropAll()
	if v.door.shut() {
		close(v.left)
	}
	<-v.left
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	errs = append(errs, v.group.Close())
	v.replies.drain()
	v.stop()
	v.owned.Wait()
	errs = append(errs, v.cfg.Data.Close())
	return errors.Join(errs...)
}

// ID returns the volume's id, the same on every replica.
func (v *Volume) ID() []byte { return v.machine.VolumeID() }

// mint makes a session id of this volume's log time.
func (v *Volume) mint(local bool) (gearsfs.SessionID, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return gearsfs.SessionID{}, fmt.Errorf("mint a session: %w", err)
	}
	salt := binary.BigEndian.Uint64(b[:]) &^ localSession
	if local {
		salt |= localSession
	}
	now := max(v.cfg.Clock().UnixNano(), int64(v.machine.LogTime()))
	return gearsfs.SessionID{Minted: now, Salt: salt}, nil
}

// localSession marks the ids of sessions that live in the node's own process:
// none of them survives it, so their leases go back when the node starts.
const localSession = 1 << 63

// status gathers what Status shows.
func (v *Volume) status() gearsfs.NodeStatus {
	g := v.group.Status()
	v.mu.Lock()
	sessions, waits := len(v.sessions), v.waits.len()
	v.mu.Unlock()
	s := gearsfs.NodeStatus{
		Name: v.cfg.Data.Identity().Name, Volume: v.machine.VolumeName(), Version: v.cfg.Version,
		Role: "leader", Leader: v.cfg.Data.Identity().Name, Term: g.Term,
		Commit: gearsfs.Index(g.Commit), Applied: gearsfs.Index(g.Applied), Durable: gearsfs.Index(g.Durable),
		LogBytes: v.cfg.Data.Log.Bytes(), StateBytes: v.cfg.Data.State.Bytes(),
		Sessions: uint32(sessions), Waits: uint32(waits), Usage: v.usage(), Started: v.started,
	}
	if v.space.full() {
		s.Warnings = append(s.Warnings, gearsfs.ErrNoSpace.Reason)
	}
	return s
}

func (v *Volume) usage() gearsfs.Usage {
	u := v.machine.Usage()
	u.BytesFree, u.BytesTotal = v.space.figures()
	return u
}

// MembersChanged implements file.Observer.
func (v *Volume) MembersChanged() {}

// Verify implements file.Observer.
func (v *Volume) Verify(_ uint64, state file.View) { state.Close() }
