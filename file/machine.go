package file

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// formatVersion is the version of the tables' meaning that this package
// writes and understands.
const formatVersion = 2

// formatOldest is the first version that is read: the tables of that one have no
// extents, and become those of formatVersion with the next entry.
const formatOldest = 1

// Observer is told what an entry did, so that waiting operations can be tried
// again and watchers told.
type Observer interface {
	// Applied is called at the end of each applied entry, on the applying
	// goroutine, with no lock held. The slices are valid during the call.
	Applied(index uint64, touched []Touched, changed []Changed)
	// Freed tells, before Applied, of the pages of the block store that no row
	// refers to any more as of the entry: each extent says where some begin and,
	// with Size, where they end; it has no Sums. They may be given back once the
	// entry is on disk, and not before: till then a crash may bring back the
	// state that refers to them. An entry that is applied again after that frees
	// the same pages again. It is called as Applied is.
	Freed(index uint64, extents []gearsfs.Extent)
	// MembersChanged says that the members of the group, or their votes, have
	// changed: after Applied, or alone for an entry of raft's, or because the
	// whole state was replaced. It is called as Applied is.
	MembersChanged()
	// Verify is called, after Applied and as that is, for an entry that asked
	// for the state to be verified: state is as of that entry. The Observer
	// owns it and closes it.
	Verify(index uint64, state View)
}

// Touched says what happened to one stream, or to a whole file where Key is "".
type Touched struct {
	Ino      gearsfs.Ino
	Key      gearsfs.Key
	Ready    bool // records can be taken
	Room     bool // room was made, or the limits changed
	Appended bool
	Sealed   bool
	Ended    bool // a lease did
	Unlocked bool // a lock on the file ended, or is for less; Key is ""
	Gone     bool // the file lost its last name, or the stream was dropped
}

// Changed is a change for watchers and the session that made it.
type Changed struct {
	gearsfs.Change
	By gearsfs.SessionID
}

// Machine is a volume's deterministic state machine. Two Machines that applied
// the same entries have the same tables, byte for byte, whatever their caches
// held.
//
// Apply is for one goroutine; all other exported methods may be called from
// any, also while Apply runs: they then show the state before or after the
// entry, never between.
//
// Invariants, outside of Apply:
//
//  1. The store's committed tables are the whole state; everything in memory
//     can be dropped and read again.
//  2. No cached object is dirty, and the open batch is empty.
//  3. The volume row's applied index is that of the last entry in the tables.
type Machine struct {
	store Store
	obs   Observer

	// mu guards all that follows and the store's committed state: Apply holds
	// it for one entry, readers hold its read side while they look at memory
	// and take a View, never while they copy bytes.
	mu     sync.RWMutex
	volume wire.VolumeRow

	nodes        cache[gearsfs.Ino, *node]
	dentries     dentries
	streams      cache[streamKey, *openStream] // also found in their node's tree
	dirtyNodes   []*node                       // in the order in which they became dirty
	dirtyStreams []*openStream                 // likewise
	touched      []Touched
	changed      []Changed
	released     []gearsfs.Extent // pages that this entry has freed
	members      bool             // a member's row changed in this entry
	verify       bool             // this entry asks for a verification
	sessions     sessions
	timers       timers
	quotas       quotas
	locks        locks
	uncounted    []*openStream // whose bytes may differ from what is counted
	buried       uint64        // bytes that this entry has moved to dead streams
	windows      *stream.Pool  // the memory of all open streams' windows
	idsMax       uint64        // gearsfs.IDsMax but in tests
	countMax     int           // countMax but in tests
	shrinkMax    uint64        // shrinkMax but in tests
	scratch      scratch
	counts       counts

	freed  atomic.Uint64 // bytes that streams have got smaller by
	doomed atomic.Bool   // whether there are any
	names  atomic.Uint64 // see Names

	// broken is the first error of the store or broken table met while
	// applying; the Machine is of no use after it.
	broken error
}

// New returns the Machine whose state is in store; an empty store is a volume
// that waits for its Init command. The Machine owns the store's batch, not the
// store. Errors: gearsfs.ErrFormat, gearsfs.ErrDamaged and the store's own.
func New(store Store, obs Observer) (*Machine, error) {
	m := &Machine{store: store, obs: obs, idsMax: gearsfs.IDsMax, countMax: countMax, shrinkMax: shrinkMax}
	m.counts.commands = make([]CommandCount, len(wire.CommandKinds()))
	if err := m.load(); err != nil {
		return nil, err
	}
	return m, nil
}

// load makes everything in memory what the tables say (invariant 1).
func (m *Machine) load() error {
	m.volume.Reset()
	m.nodes.init(nodesMax)
	m.dentries.init(dentriesMax)
	m.streams.init(streamsMax)
	m.dirtyNodes, m.dirtyStreams, m.uncounted = nil, nil, nil
	m.sessions = sessions{}
	m.timers = timers{}
	m.windows = stream.NewPool(windowBytesMax)
	if err := m.loadVolume(); err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	if err := m.loadSessions(); err != nil {
		return fmt.Errorf("open sessions: %w", err)
	}
	if err := m.loadTimers(); err != nil {
		return fmt.Errorf("open timers: %w", err)
	}
	if err := m.loadQuotas(); err != nil {
		return fmt.Errorf("open quotas: %w", err)
	}
	if err := m.loadLocks(); err != nil {
		return fmt.Errorf("open locks: %w", err)
	}
	return nil
}

// Replace has swap put other tables in the place of the store's and reads them,
// so that the Machine is as if it had been made from them: readers see the
// tables before or those after, and wait meanwhile. The Observer is told that
// the members changed; what else did, nobody can say. It is called as Apply is.
//
// Where swap fails, its error is returned, and the Machine goes on with
// whatever the store has.
func (m *Machine) Replace(swap func() error) error {
	err := m.replaceLocked(swap)
	if err != nil {
		return fmt.Errorf("replace the state: %w", err)
	}
	if m.obs != nil {
		m.obs.MembersChanged()
	}
	return nil
}

func (m *Machine) replaceLocked(swap func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	m.names.Add(1)
	swapped := swap()
	m.broken = m.load()
	return errors.Join(swapped, m.broken)
}

// Applied returns the index and term of the last applied entry, 0 where there
// is none.
func (m *Machine) Applied() (index, term uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.volume.AppliedIndex, m.volume.AppliedTerm
}

// context is what applying one command may depend on besides the tables.
type context struct {
	index   uint64 // the entry's
	now     uint64 // its log time
	session gearsfs.SessionID
	caller  gearsfs.Caller
	stored  bool // its answer is stored already
}

// Apply applies one entry of the log and commits it, without waiting for the
// disk. It returns one answer per command, which belong to the caller. An
// entry that was applied before is skipped: no answers, no error. An error
// means that the store is broken; the Machine must not be used any more. Only
// one goroutine may call it.
func (m *Machine) Apply(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	answers, err := m.applyLocked(index, term, e)
	if err != nil {
		return nil, fmt.Errorf("apply entry %d: %w", index, err)
	}
	if answers == nil || m.obs == nil {
		return answers, nil
	}
	if len(m.released) > 0 {
		m.obs.Freed(index, m.released)
	}
	m.obs.Applied(index, m.touched, m.changed)
	if m.members {
		m.obs.MembersChanged()
	}
	if m.verify {
		m.obs.Verify(index, m.store.View())
	}
	return answers, nil
}

func (m *Machine) applyLocked(index, term uint64, e *wire.Entry) ([]*wire.Answer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return nil, m.broken
	}
	if index <= m.volume.AppliedIndex {
		return nil, nil
	}
	m.touched, m.changed, m.released = m.touched[:0], m.changed[:0], m.released[:0]
	m.members, m.verify = false, false
	m.passTime(e)
	m.runTimers(index)
	m.countBytes()
	if m.broken != nil {
		return nil, m.broken
	}
	answers := make([]*wire.Answer, len(e.Commands))
	for i, cmd := range e.Commands {
		answers[i] = m.applyCommand(index, cmd)
		m.countBytes()
		if m.broken != nil {
			return nil, m.broken
		}
	}
	m.sweepSessions()
	m.timers.tidy()
	m.volume.AppliedIndex, m.volume.AppliedTerm = index, term
	m.flush()
	if m.broken != nil {
		return nil, m.broken
	}
	if err := m.store.Commit(); err != nil {
		m.broken = err
		return nil, err
	}
	m.shrinkCaches()
	return answers, nil
}

// applyCommand applies one command; its session decides first whether it is
// new.
func (m *Machine) applyCommand(index uint64, cmd *wire.Command) *wire.Answer {
	c := &context{
		index:   index,
		now:     m.volume.LogTime,
		session: gearsfs.SessionID{Minted: int64(cmd.SessionMinted), Salt: cmd.SessionSalt},
		caller:  gearsfs.Caller{UID: cmd.Uid, GIDs: cmd.Gids, Checked: cmd.Checked},
	}
	if m.volume.Format == 0 {
		if op, ok := cmd.Op.(*wire.Command_Init); ok {
			return m.applyInit(c, op.Init)
		}
		return m.refuse(gearsfs.ErrIO.Because("the volume is not initialised"))
	}
	if answer := m.beginCommand(c, cmd); answer != nil {
		return answer
	}
	if !keepsNames(cmd) {
		m.names.Add(1)
	}
	answer := m.dispatch(c, cmd)
	m.counts.command(cmd, answer)
	m.endCommand(c, cmd, answer)
	return answer
}

func (m *Machine) dispatch(c *context, cmd *wire.Command) *wire.Answer {
	switch op := cmd.Op.(type) {
	case *wire.Command_Put:
		return m.applyPut(c, cmd, op.Put)
	case *wire.Command_Take:
		return m.applyTake(c, cmd, op.Take)
	case *wire.Command_Update:
		return m.applyUpdate(c, op.Update)
	case *wire.Command_Transact:
		return m.applyTransact(c, cmd, op.Transact)
	case *wire.Command_Move:
		return m.applyMove(c, op.Move)
	case *wire.Command_CopyFile:
		return m.applyCopyFile(c, op.CopyFile)
	case *wire.Command_Settle:
		return m.applySettle(c, op.Settle)
	case *wire.Command_Configure:
		return m.applyConfigure(c, op.Configure)
	case *wire.Command_Inherit:
		return m.applyInherit(c, op.Inherit)
	case *wire.Command_EndSession:
		return m.applyEndSession(c, op.EndSession)
	case *wire.Command_Confirm, *wire.Command_Tick:
		return &wire.Answer{}
	case *wire.Command_Rewrite:
		return m.applyRewrite(c, op.Rewrite)
	case *wire.Command_Shrink:
		return m.applyShrink(c, op.Shrink)
	case *wire.Command_CopyRange:
		return m.applyCopyRange(c, op.CopyRange)
	case *wire.Command_Write:
		return m.applyWrite(c, op.Write)
	case *wire.Command_Save:
		return m.applySave(c, op.Save)
	case *wire.Command_Allocate:
		return m.applyAllocate(c, op.Allocate)
	case *wire.Command_Make:
		return m.applyMake(c, op.Make)
	case *wire.Command_Link:
		return m.applyLink(c, op.Link)
	case *wire.Command_Unlink:
		return m.applyUnlink(c, op.Unlink)
	case *wire.Command_Rename:
		return m.applyRename(c, op.Rename)
	case *wire.Command_SetAttr:
		return m.applySetAttr(c, op.SetAttr)
	case *wire.Command_SetXattr:
		return m.applySetXattr(c, op.SetXattr)
	case *wire.Command_Release:
		return m.applyRelease(c, op.Release)
	case *wire.Command_SetRemote:
		return m.applySetRemote(c, op.SetRemote)
	case *wire.Command_SetMember:
		return m.applySetMember(c, op.SetMember)
	case *wire.Command_SetQuota:
		return m.applySetQuota(c, op.SetQuota)
	case *wire.Command_CountQuota:
		return m.applyCountQuota()
	case *wire.Command_Lock:
		return m.applyLock(c, op.Lock)
	case *wire.Command_Verify:
		m.verify = true
		return &wire.Answer{}
	case *wire.Command_Init:
		return m.refuse(gearsfs.ErrExists.Because("the volume is initialised already"))
	}
	return m.refuse(gearsfs.ErrUnknownOp)
}

// refuse makes err the answer of a command that has changed nothing. An error
// that is not a caller's to react to is the store's: it breaks the Machine.
func (m *Machine) refuse(err error) *wire.Answer {
	if e, ok := callersError(err); ok {
		answer := &wire.Answer{Code: uint32(e.Code), Reason: e.Reason, Refused: e == errRefused}
		if f, ok := errors.AsType[*fragmented](err); ok {
			answer.Fragmented = f.row
		}
		if o, ok := errors.AsType[*oversize](err); ok {
			answer.Shrink = o.first
		}
		return answer
	}
	if m.broken == nil {
		m.broken = err
	}
	return &wire.Answer{Code: uint32(gearsfs.ErrIO.Code), Reason: err.Error()}
}

// touch returns the entry's note about a stream, or with key "" about a whole
// file, to be filled in. It is valid until the next call.
func (m *Machine) touch(ino gearsfs.Ino, key gearsfs.Key) *Touched {
	// Entries that touch many streams touch the same ones in bursts, so the
	// search from the end is short; a second note for a stream does no harm.
	for i := len(m.touched) - 1; i >= max(0, len(m.touched)-8); i-- {
		if t := &m.touched[i]; t.Ino == ino && t.Key == key {
			return t
		}
	}
	m.touched = append(m.touched, Touched{Ino: ino, Key: key})
	return &m.touched[len(m.touched)-1]
}

// change notes a change for watchers: of ino's attributes, with data also of
// its bytes.
func (m *Machine) change(c *context, ino gearsfs.Ino, data bool) {
	m.changed = append(m.changed, Changed{Change: gearsfs.Change{Ino: ino, Data: data}, By: c.session})
}

// changeName notes that what name in dir leads to has changed.
func (m *Machine) changeName(c *context, dir gearsfs.Ino, name string) {
	m.changed = append(m.changed, Changed{Change: gearsfs.Change{Ino: dir, Name: name}, By: c.session})
}

// flush puts everything that is dirty into the open batch.
func (m *Machine) flush() {
	for _, s := range m.dirtyStreams {
		m.flushStream(s)
	}
	clear(m.dirtyStreams)
	m.dirtyStreams = m.dirtyStreams[:0]
	m.flushSessions()
	for _, n := range m.dirtyNodes {
		m.flushNode(n)
	}
	clear(m.dirtyNodes)
	m.dirtyNodes = m.dirtyNodes[:0]
	m.flushQuotas()
	m.flushLocks()
	m.flushVolume()
}
