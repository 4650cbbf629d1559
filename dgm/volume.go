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
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/dgm/internal/memory"
	"github.com/gearsfs/gearsfs/dgm/internal/mesh"
	"github.com/gearsfs/gearsfs/dgm/internal/payload"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/replica"
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
	// BlockFS is what the block store in Data's directory is kept in; nil is the
	// operating system's. It is another one where Data's is.
	BlockFS block.FS
	// BlockLeast is the length from which on a payload goes to the block store
	// instead of through the log; 0 is 64 KiB.
	BlockLeast int
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
	// ScrubBytesPerSecond bounds what this node reads in the background to find
	// out whether large payloads are still as they were written; 0 is 8 MiB, less
	// has it not done.
	ScrubBytesPerSecond int64
	// Offline has this node neither look for the other nodes of the volume nor
	// look after its data: for who only checks these.
	Offline bool
	// Fatal is told that the volume can't go on (a failed write or fsync); the
	// process should end. It is called once at most, on any goroutine.
	Fatal func(error)
	// Log takes what is worth a line; nil is slog.Default().
	Log *slog.Logger
}

const (
	blockLeastDefault             = 64 << 10
	reserveBytesDefault           = 64 << 20
	snapshotBytesPerSecondDefault = 128 << 20
	verifyEveryDefault            = time.Hour
	scrubBytesPerSecondDefault    = 8 << 20
)

// founder is the member that made the volume.
const founder gearsfs.MemberID = 1

// Volume runs one replica of a volume in this process: the state machine
// behind its log, and while this node leads (tenure) the operations that wait and
// the sessions, those of Locals and of clients that come over sockets. All
// methods are safe for concurrent use.
type Volume struct {
	cfg     VolumeConfig
	log     *slog.Logger
	member  gearsfs.MemberID
	machine *file.Machine
	group   *replica.Group // set when opened is closed
	mesh    *mesh.Mesh
	door    door          // inside is who uses the machine for a caller
	opened  chan struct{} // closed when group is set, or never will be
	ended   chan struct{} // closed when Close is done
	left    chan struct{} // closed when the door is shut and nobody is inside
	reads   chan struct{} // holds one for each bulky query that reads
	space   space
	memory  *memory.Machine
	fitness fitness
	started time.Time

	// mu is taken before that of a tenure or a peer, and never held over I/O.
	mu            sync.Mutex
	last          *tenure            // the latest, whatever has become of it
	leaderChanged chan struct{}      // closed when who leads may have changed
	membersNoted  chan struct{}      // closed when the members may have changed
	offers        map[string][]*peer // the latest last
	passages      map[passage]*peer
	links         map[string]*Remote // proxies by name, made when first used
	closed        bool

	tenure   atomic.Pointer[tenure] // that serves; nil while this node does not lead
	ruled    atomic.Bool            // a tenure began since the volume was opened
	progress progress
	replies  replies
	watches  watches
	payloads payload.Keeper
	joining  sync.RWMutex    // held while a node is added or removed; shared, while a stream comes into memory
	busy     context.Context // ends when the volume begins to close
	quit     context.CancelFunc
	root     context.Context // ends when the volume is closed
	stop     context.CancelFunc
	owned    sync.WaitGroup // goroutines that end with root
	broken   atomic.Bool
}

var _ file.Observer = (*Volume)(nil)

// OpenVolume opens the volume whose replica is in cfg.Data, replaying its log,
// and makes it where the data is new. In a group of one it returns when the
// volume serves; in one of several when this node takes part, whoever leads.
// Errors: gearsfs.ErrDamaged, and those of log and state.
func OpenVolume(ctx context.Context, cfg VolumeConfig) (*Volume, error) {
	cfg.setDefaults()
	v := &Volume{
		cfg: cfg, log: cfg.Log, started: cfg.Clock(),
		offers:        make(map[string][]*peer),
		passages:      make(map[passage]*peer),
		links:         make(map[string]*Remote),
		opened:        make(chan struct{}),
		ended:         make(chan struct{}),
		left:          make(chan struct{}),
		leaderChanged: make(chan struct{}),
		membersNoted:  make(chan struct{}),
		reads:         make(chan struct{}, readsMax),
	}
	v.watches.init()
	v.root, v.stop = context.WithCancel(context.Background())
	v.busy, v.quit = context.WithCancel(v.root)
	if err := v.open(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (cfg *VolumeConfig) setDefaults() {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Name == "" {
		cfg.Name = "main"
	}
	if cfg.BlockLeast == 0 {
		cfg.BlockLeast = blockLeastDefault
	}
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = reserveBytesDefault
	}
	if cfg.SnapshotBytesPerSecond <= 0 {
		cfg.SnapshotBytesPerSecond = snapshotBytesPerSecondDefault
	}
	if cfg.VerifyEvery == 0 {
		cfg.VerifyEvery = verifyEveryDefault
	}
	if cfg.ScrubBytesPerSecond == 0 {
		cfg.ScrubBytesPerSecond = scrubBytesPerSecondDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
}

func (v *Volume) open(ctx context.Context) error {
	v.replies.init(&v.owned, v.root)
	err := v.openReplica()
	close(v.opened)
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	v.membersChanged()
	v.mu.Lock()
	first := v.last
	v.mu.Unlock()
	if v.alone() && first != nil {
		select {
		case <-first.begun:
			err = first.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err == nil {
		err = v.noteFounder()
	}
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	if v.cfg.Offline {
		return nil
	}
	v.mesh.Begin(v.group)
	v.payloads.Begin()
	return nil
}

// openReplica opens the state machine and the log above it. Where this node is
// the only voter it leads when openReplica returns.
func (v *Volume) openReplica() error {
	machine, err := file.New(v.cfg.Data.State, v)
	if err != nil {
		return err
	}
	v.machine = machine
	v.memory = memory.New(machine, memoryNode{v})
	index, _ := machine.Applied()
	v.progress.reach(index)
	v.space.init(v.cfg.Data, v.cfg.ReserveBytes, v.cfg.Clock)
	who := v.cfg.Data.Identity()
	joined := who.Member != 0
	if v.member = who.Member; !joined {
		v.member = founder
	}
	if v.member == founder && joined && index == 0 && v.cfg.Data.Log.Last() == 0 {
		return gearsfs.ErrDamaged.Because("%s has lost its log and its state: let it join the volume with new data", who.Name)
	}
	if err := v.openPayloads(); err != nil {
		return err
	}
	v.mesh = newMesh(v)
	v.group, err = replica.Open(replica.Config{
		ID: uint64(v.member), Joined: joined, Log: syncedLog{v.cfg.Data.Log, &v.payloads}, Machine: applier{machine, &v.payloads}, Clock: v.cfg.Clock,
		Fit: v.fitToVote, Intact: v.payloads.Intact, Sure: v.cfg.Data.Log.Sure(),
		Peers: v.mesh, Snapshots: v.mesh.Snapshots(), Leads: v.leads, LeaderChanged: v.leaderMoved, Flush: v.cfg.Data.State.Flush, Answers: &v.replies, Freed: machine.Freed, Fatal: v.fatal, Logger: v.log,
	})
	return err
}

// noteFounder writes down which volume this node's data is a part of, where
// it made that volume: who was added to one has it written before.
func (v *Volume) noteFounder() error {
	if v.cfg.Data.Identity().Member != 0 || !v.machine.Initialised() {
		return nil
	}
	var id persist.ID
	copy(id[:], v.machine.VolumeID())
	return v.cfg.Data.SetMember(id, v.member)
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

// spawn runs f on a goroutine that Close waits for; not where the volume is
// closing.
func (v *Volume) spawn(f func()) bool {
	if !v.enter() {
		return false
	}
	v.owned.Go(f)
	v.leave()
	return true
}

func (v *Volume) leave() {
	if v.door.leave() {
		close(v.left)
	}
}

// Close ends what waits, finishes what was accepted, flushes the state and
// closes the data directory. The sessions of Locals are over; Remotes can go on
// with theirs when the volume is opened again, or on another node. It is
// idempotent and waits.
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
	last := v.last
	v.mu.Unlock()
	v.quit()
	if last != nil {
		last.end(gearsfs.ErrClosed)
		last.clear()
	}
	v.watches.dropAll(gearsfs.ErrClosed)
	v.progress.close()
	if v.door.shut() {
		close(v.left)
	}
	<-v.left
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	if v.group != nil {
		errs = append(errs, v.group.Close())
	}
	if v.mesh != nil {
		v.mesh.Close()
	}
	v.replies.drain()
	v.stop()
	v.owned.Wait()
	errs = append(errs, v.payloads.Close(), v.cfg.Data.Close())
	return errors.Join(errs...)
}

func (v *Volume) isClosed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closed
}

// ID returns the volume's id, the same on every replica.
func (v *Volume) ID() []byte { return v.machine.VolumeID() }

// mint makes a session id of this volume's log time.
func (v *Volume) mint(local, lasting bool) (gearsfs.SessionID, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return gearsfs.SessionID{}, fmt.Errorf("mint a session: %w", err)
	}
	salt := binary.BigEndian.Uint64(b[:]) &^ (localSession | lastingSession)
	switch {
	case lasting:
		salt |= lastingSession
	case local:
		salt |= localSession
	}
	return gearsfs.SessionID{Minted: int64(v.group.Time()), Salt: salt}, nil
}

// localSession marks the ids of sessions that live in a node's own process:
// none of them survives it, so where a node is alone their leases go back when
// it starts.
const localSession = 1 << 63

// lastingSession marks the ids of sessions that a next process goes on with
// when one dies, also one in which a node has run.
const lastingSession = 1 << 62

func isLasting(id gearsfs.SessionID) bool { return id.Salt&lastingSession != 0 }

// alone says whether this node is the only member of its group.
func (v *Volume) alone() bool { return v.group.Sole() }

// Replicated says whether each change waits for other nodes: as far as this one
// knows, it is not the only one.
func (v *Volume) Replicated() bool { return !v.alone() }

func (v *Volume) usage() gearsfs.Usage {
	u := v.machine.Usage()
	u.BytesFree, u.BytesTotal = v.space.figures()
	u.BytesAvail, u.InodesFree = u.BytesFree, u.BytesFree/inodeBytes
	return u
}
