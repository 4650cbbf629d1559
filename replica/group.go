package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// Machine is the state machine that a Group drives. Only one goroutine calls
// it. An index that is not above the applied one is skipped. An error means
// that the state is broken: the Group ends.
type Machine interface {
	// Applied returns the index and term of the last entry in the state.
	Applied() (index, term uint64)
	// Apply applies an entry and returns one answer per command. Raft's own
	// entries have no commands and time 0. The applied index becomes index in the
	// same batch. The entry may be kept, but not changed.
	Apply(index, term uint64, entry *wire.Entry) ([]*wire.Answer, error)
	// ApplyConf is Apply for an entry that changed who is in the group: conf
	// is kept as it is. Context is what the change was proposed with: an encoded
	// wire.MemberChange, or empty.
	ApplyConf(index, term uint64, conf, context []byte) error
	// ConfState returns what ApplyConf was last given, nil in an empty state.
	ConfState() []byte
	// LogTime returns the time of the latest entry in the state.
	LogTime() uint64
}

// Config is what a Group is made of. All fields up to Fatal are needed; a
// Group without Peers or Snapshots can have no other members, or only such as
// find all they need in the log.
type Config struct {
	// ID is the node's identity in the group; not 0, and never used again for
	// a node that lost its log.
	ID      uint64
	Log     Log
	Machine Machine
	// Flush begins to write the state as it is to disk; the channel yields nil
	// when it is there. An error is not final: the Group asks again later.
	Flush func() <-chan error
	// Clock is the source of log time, as time.Now: it may jump, but while this
	// node leads only the monotonic time between its readings counts.
	Clock func() time.Time
	// Fatal is called once, on a goroutine of the Group, when log or state
	// failed after Open: nothing is acknowledged any more. It must not block;
	// the Group still wants to be closed.
	Fatal func(error)
	// Joined says that this node was added to a group: an empty log waits for
	// its leader instead of founding another one.
	Joined bool
	// Peers carries messages to the other members; nil drops them.
	Peers Peers
	// Snapshots makes, sends and installs copies of the state for members whose
	// place in the log is cut off; nil does not.
	Snapshots Snapshots
	// Leads is called on the loop's goroutine: with true once this node leads
	// and has applied the first entry of its own term, with false when it does
	// not lead any more and all that was in flight is answered; the term is that
	// in which it led. It must not block. In a group of one it is called with
	// true before Open returns.
	Leads func(leads bool, term uint64)
	// LeaderChanged is called on the loop's goroutine when another node leads, or
	// none: Status says which. It must not block; nil is nobody.
	LeaderChanged func()
	// Answers, where it is not nil, hears of a visitor (see Enter) that is about
	// to call Done, so that what follows from that needs no other goroutine.
	Answers Answers
	// Freed counts the bytes that Machine has let go of: the space of those comes
	// back by a flush only. nil is never any.
	Freed func() uint64
	// Intact is asked, where this node is the only voter, about entries behind Sure
	// that are not in the state, before they are: the first one of which it says no,
	// and all behind it, did not happen. They came to the disk without a sync, and
	// what they refer to did not. nil is always yes.
	Intact func(*wire.Entry) bool
	Sure   uint64
	// Fit says whether a member that has caught up with the log may vote; nil is
	// always. It is asked again at each tick, and must not block.
	Fit func(member uint64) bool
	// KeepLogBytes is how much log is kept for members that are behind; 0 is
	// 256 MiB.
	KeepLogBytes uint64
	// Seed makes the Group's own random choices repeatable; 0 does not. Raft's
	// choices come from crypto/rand.Reader.
	Seed int64
	// Logger gets what raft says, at debug level; nil is nobody.
	Logger *slog.Logger
}

// Answers hands on what Done was told. Both are called by a visitor, with
// nothing locked, and not while it waits for the disk.
type Answers interface {
	// Gather has what is handed on from now wait for Deliver.
	Gather()
	// Deliver ends what Gather began. It must not wait for anything.
	Deliver()
}

// limits are the sizes at which a Group does something else.
type limits struct {
	entryCommands int    // of one entry, where one call has not more
	entryBytes    int    // likewise
	callBytes     int    // of one call of Propose: gearsfs.ErrTooBig
	heldCommands  int64  // taken and not answered: gearsfs.ErrOverload
	heldBytes     int64  // likewise
	flushBytes    uint64 // of log after which the state is flushed
	replayBytes   uint64 // of log above the flushed state: proposals wait
	freedBytes    uint64 // that the state may keep after they were let go of
	flushRetry    time.Duration
	quickSync     time.Duration // up to which syncs may be done in place of being left to another goroutine
	followSync    time.Duration // likewise, where another leads
}

var defaultLimits = limits{
	entryCommands: 4096,
	entryBytes:    4 << 20,
	callBytes:     32 << 20,
	heldCommands:  1 << 16,
	heldBytes:     64 << 20,
	flushBytes:    32 << 20,
	replayBytes:   96 << 20, // and what is in flight: 128 MiB in all
	freedBytes:    128 << 20,
	flushRetry:    time.Second,
	quickSync:     400 * time.Microsecond, // to wake that goroutine, and be woken, takes as long
	followSync:    2 * time.Millisecond,   // for which a read here, or a heartbeat, may wait
}

// Raft's ticks and what it may hold; ticks only matter in a group of several.
const (
	tick             = 100 * time.Millisecond
	electionTicks    = 10
	heartbeatTicks   = 1
	messageBytesMax  = 1 << 20
	inflightMessages = 256
	inflightBytes    = 32 << 20 // to one member
	uncommittedBytes = 64 << 20
	applyBytes       = 512 << 10 // committed entries that raft hands out at once: between, others are heard
)

// Group is this node's replica of a volume: it puts commands into the
// replicated log and what is committed into the state machine, in one order.
// Its methods are safe for concurrent use.
type Group struct {
	cfg    Config
	limits limits
	world  world
	store  *storage
	disk   *disk
	held   held
	time   atomic.Uint64 // log time of the last entry
	ahead  atomic.Int64  // in a tenure: log time less world.elapsed; else 0
	status published
	sole   atomic.Bool // this node is the only member
	alone  atomic.Bool // and leads
	broken atomic.Bool // err is set

	loop loop // belongs to the goroutine run

	wake  chan struct{} // of capacity 1: something below changed
	ended chan struct{} // run has returned

	mu       sync.Mutex
	pending  []waiting
	arrivals arrivals
	asleep   bool      // the loop waits; see help.go
	least    int       // proposals that make an entry, as of when asleep was set
	eager    bool      // one of pending is not durable
	helping  bool      // somebody works in its place
	helped   sync.Cond // signalled when helping is unset
	helpErr  error     // what a helper failed with
	visitors int       // between Enter and Leave
	leading  bool      // proposals are taken: a tenure
	opened   bool      // Open has succeeded
	closing  bool
	over     bool  // the loop does nothing any more
	err      error // the first failure
	closeErr error // what the last flush said
}

// Open makes cfg.Log and cfg.Machine a replica. It applies what the log has
// committed and the state lacks before it returns; in a group of one that is
// all, and the node leads then and all of it is on disk. It may be called
// again on the same log and state after Close or a crash.
//
// Errors: gearsfs.ErrDamaged where log and state don't fit together,
// gearsfs.ErrForeign where they are another node's, and those of log and state.
func Open(cfg Config) (*Group, error) { return open(cfg, defaultLimits) }

func open(cfg Config, limits limits) (*Group, error) {
	g, err := prepare(cfg, limits, newEarth(cfg.Clock))
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	g.disk.start()
	go g.run()
	return g, nil
}

// prepare opens a Group that has no goroutines: whoever calls it steps it, or
// starts them. See step.go.
func prepare(cfg Config, limits limits, w world) (*Group, error) {
	if cfg.ID == 0 || raft.IsLocalMsgTarget(cfg.ID) {
		return nil, gearsfs.ErrInvalid.Because("node id %d", cfg.ID)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.KeepLogBytes == 0 {
		cfg.KeepLogBytes = keepLogBytes
	}
	store, err := openStorage(cfg)
	if err != nil {
		return nil, err
	}
	g := &Group{
		cfg: cfg, limits: limits, world: w, store: store,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	store.snapshot = g.snapshot
	g.helped.L = &g.mu
	g.disk = newDisk(cfg.Log, w, g.fail, g.kick)
	g.disk.between = g.relieve
	g.loop.outbox.late.timer = w.timer(func() {
		if g.loop.outbox.late.fire() {
			g.kick()
		}
	})
	if err := g.start(); err != nil {
		g.disk.abort(err)
		g.disk.close()
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = true
	return g, nil
}

// start brings raft up and replays, on the caller's goroutine.
func (g *Group) start() error {
	applied, _ := g.cfg.Machine.Applied()
	g.time.Store(g.cfg.Machine.LogTime())
	g.passTo(g.cfg.Machine.LogTime())
	g.status.applied.Store(applied)
	g.status.commit.Store(g.store.hard.GetCommit())
	g.status.term.Store(g.store.hard.GetTerm())
	l := &g.loop
	l.hardTerm, l.hardVote, l.hardCommit = g.store.hard.GetTerm(), g.store.hard.GetVote(), g.store.hard.GetCommit()
	l.term = l.hardTerm
	l.proposal = &raftpb.Message{
		Type: raftpb.MsgProp.Enum(), From: &g.cfg.ID, Entries: []*raftpb.Entry{{}},
	}
	if err := g.seed(); err != nil {
		return err
	}
	return g.guard(func() error {
		node, err := raft.NewRawNode(&raft.Config{
			ID:                        g.cfg.ID,
			ElectionTick:              electionTicks,
			HeartbeatTick:             heartbeatTicks,
			Storage:                   g.store,
			Applied:                   applied,
			AsyncStorageWrites:        true,
			MaxSizePerMsg:             messageBytesMax,
			MaxCommittedSizePerReady:  applyBytes,
			MaxUncommittedEntriesSize: uncommittedBytes,
			MaxInflightMsgs:           inflightMessages,
			MaxInflightBytes:          inflightBytes,
			CheckQuorum:               true,
			PreVote:                   true,
			ReadOnlyOption:            raft.ReadOnlySafe,
			Logger:                    quiet{g.cfg.Logger},
			DisableProposalForwarding: true,
			StepDownOnRemoval:         true,
		})
		if err != nil {
			return fmt.Errorf("raft: %w", err)
		}
		l.node = node
		g.confChanged(g.store.conf)
		return g.replay()
	})
}

// Propose puts commands in line for the log and returns. Those of one call
// stand next to each other in one entry, and calls that follow each other keep
// their order. It never waits for I/O; a Group that has too much on hand
// refuses the whole call with gearsfs.ErrOverload.
func (g *Group) Propose(ps ...*Proposal) {
	if len(ps) == 0 {
		return
	}
	var few [8]waiting // no allocation for a short call
	total, items, eager := 0, few[:0], false
	for _, p := range ps {
		size := p.Command.SizeVT()
		eager = eager || !p.Durable
		total += size
		items = append(items, waiting{Proposal: p, bytes: size})
	}
	items[len(items)-1].last = true

	g.mu.Lock()
	if err := g.refusalLocked(len(ps), total); err != nil {
		g.mu.Unlock()
		// Not on this goroutine: the caller may hold a lock that Done takes. The
		// one begun here ends with the last Done, which does not block.
		late := slices.Clone(items)
		g.world.spawn(func() { refuse(late, err) })
		return
	}
	g.held.commands.Add(int64(len(ps)))
	g.held.bytes.Add(int64(total))
	g.pending = append(g.pending, items...)
	if eager {
		g.eager = true
		g.endHoldLocked()
	}
	if len(g.pending) < g.least {
		g.mu.Unlock()
		return
	}
	g.unlockAndKick()
}

func refuse(items []waiting, err error) {
	for i := range items {
		items[i].Done(nil, err)
	}
}

// refusalLocked returns why a call of so many commands and bytes is not taken.
func (g *Group) refusalLocked(commands, bytes int) error {
	switch {
	case g.err != nil:
		return gearsfs.ErrClosed.Because("the replica has failed: %v", g.err)
	case g.closing:
		return gearsfs.ErrClosed
	case !g.leading:
		return gearsfs.ErrNotLeader
	case bytes > g.limits.callBytes || int64(commands) > g.limits.heldCommands:
		return gearsfs.ErrTooBig.Because("%d commands of %d bytes in one call", commands, bytes)
	case g.held.commands.Load()+int64(commands) > g.limits.heldCommands,
		g.held.bytes.Load()+int64(bytes) > g.limits.heldBytes:
		return gearsfs.ErrOverload
	}
	return nil
}

// Time returns a log time not before that of any entry that this node has
// written or applied. While it leads, that is the clock's when that began and
// the time since, however the clock is set meanwhile; else it is the clock's,
// unless that was ahead once.
func (g *Group) Time() uint64 {
	now := g.ahead.Load()
	if now != 0 {
		now += int64(g.world.elapsed())
	} else {
		now = g.cfg.Clock().UnixNano()
	}
	return max(g.time.Load(), uint64(max(0, now)))
}

// Close refuses new proposals, finishes those that were taken, syncs the log,
// flushes the state, so that the next Open has nothing to replay, and waits
// for all that. A leader of several hands its place to another first. Without
// a majority that takes two seconds at most, and what could not be finished is
// gearsfs.ErrMaybe. It is idempotent and returns the Group's failure, or that of
// the flush: what was acknowledged is in the log all the same.
func (g *Group) Close() error {
	g.beginClose()
	<-g.ended
	return g.outcome()
}

func (g *Group) beginClose() {
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.kick()
}

// outcome is what Close returns.
func (g *Group) outcome() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.err, g.closeErr)
}

// Reclaim flushes the state soon where that gives back space, as on a disk that
// is full. It returns at once.
func (g *Group) Reclaim() {
	if g.loop.flush.full.CompareAndSwap(false, true) {
		g.kick()
	}
}

// kick makes the loop look around.
func (g *Group) kick() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// unlockAndKick releases mu, under which something was put down for the loop.
func (g *Group) unlockAndKick() {
	asleep := g.asleep && g.visitors == 0
	if asleep {
		g.asleep = false
	}
	g.mu.Unlock()
	if asleep {
		g.kick()
	}
}

// fail ends the Group because of err, from any of its goroutines.
func (g *Group) fail(err error) {
	g.mu.Lock()
	first := g.err == nil
	if first {
		g.err = err
	}
	opened := g.opened
	g.mu.Unlock()
	if !first {
		return
	}
	g.broken.Store(true)
	g.disk.abort(err)
	if opened {
		g.cfg.Fatal(err)
	}
	g.kick()
}

// failed returns what ended the Group.
func (g *Group) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
