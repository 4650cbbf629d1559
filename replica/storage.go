package replica

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
)

// LogEntry is an entry of the log; its Type is raft's.
type LogEntry = persist.LogEntry

// Log keeps a replica's log and hard state. It is called by several goroutines:
// Sync, TruncateFront and reads may run beside an Append. An error of Append or Sync is final: the Group never
// tries again.
type Log interface {
	LogReader

	// Append writes entries, and the hard state where hard is not nil, so that
	// they survive the end of the process. The first entry's index is at most
	// Last()+1; a lower one replaces what was there and behind it. The Data of
	// the entries is never changed again, so it may be kept; the slice may not.
	Append(entries []LogEntry, hard []byte) error
	// Hasten says that a Sync will follow soon; it does not wait for the disk.
	Hasten()
	// Sync returns when all that was appended before the call is on disk.
	Sync() error
	// TruncateFront says that entries up to index are not needed any more.
	// Term of that index stays known. It may wait for the disk.
	TruncateFront(index uint64) error
	// Reset empties the log so that its next entry is index+1, behind an entry
	// of the given term.
	Reset(index, term uint64) error
}

// LogReader is the reading half of Log.
type LogReader interface {
	// Entries returns the entries [lo, hi), which lie between First and Last:
	// as many as bytesMax allows, but at least one. They are not changed later.
	Entries(lo, hi, bytesMax uint64) ([]LogEntry, error)
	// Term returns the term of an entry between First()-1 and Last().
	Term(index uint64) (uint64, error)
	// First is the index of the first entry that can be read, Last that of the
	// last; an empty log has First() == Last()+1.
	First() uint64
	Last() uint64
	// HardState returns what Append was last given, nil on a fresh log.
	HardState() []byte
	// Bytes is how much disk the log takes.
	Bytes() uint64
	// BytesFrom is about how much of the log lies behind entry index, up to
	// Last. It is cheap.
	BytesFrom(index uint64) uint64
}

// storage shows a Log to raft. Raft reads an entry back as soon as it is
// committed, so the entries between appended and applied are kept as they are.
type storage struct {
	log    Log
	hard   *raftpb.HardState
	conf   *raftpb.ConfState
	recent []*raftpb.Entry // by rising index without gaps, ends at the last entry
	err    error           // the log's first error; raft panics on it

	snapshot func() (*raftpb.Snapshot, error)
}

var (
	_ raft.Storage = (*storage)(nil)
	_ Log          = (*persist.Log)(nil)
)

// appended notes that entries are in the log now.
func (s *storage) appended(entries []*raftpb.Entry) {
	first := entries[0].GetIndex()
	if n := len(s.recent); n > 0 {
		kept := max(0, int64(first)-int64(s.recent[0].GetIndex()))
		clear(s.recent[kept:])
		s.recent = s.recent[:kept]
	}
	s.recent = append(s.recent, entries...)
}

// forget drops the entries up to index, which are applied.
func (s *storage) forget(index uint64) {
	n := 0
	for n < len(s.recent) && s.recent[n].GetIndex() <= index {
		n++
	}
	kept := copy(s.recent, s.recent[n:])
	clear(s.recent[kept:])
	s.recent = s.recent[:kept]
}

func (s *storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return s.hard, s.conf, nil
}

func (s *storage) Entries(lo, hi, bytesMax uint64) ([]*raftpb.Entry, error) {
	if len(s.recent) > 0 {
		if first := s.recent[0].GetIndex(); lo >= first && hi <= first+uint64(len(s.recent)) {
			return limit(s.recent[lo-first:hi-first], bytesMax), nil
		}
	}
	if lo < s.log.First() {
		return nil, raft.ErrCompacted
	}
	if hi > s.log.Last()+1 {
		return nil, raft.ErrUnavailable
	}
	entries, err := s.log.Entries(lo, hi, bytesMax)
	if err != nil && lo < s.log.First() {
		return nil, raft.ErrCompacted // meanwhile
	}
	if err != nil {
		return nil, s.failed(fmt.Errorf("read the log: %w", err))
	}
	out := make([]*raftpb.Entry, len(entries))
	for i := range entries {
		e := &entries[i]
		kind := raftpb.EntryType(e.Type)
		out[i] = &raftpb.Entry{Index: &e.Index, Term: &e.Term, Type: &kind, Data: e.Data}
	}
	return out, nil
}

// limit copies the first entries, at least one, that fit in bytesMax.
func limit(entries []*raftpb.Entry, bytesMax uint64) []*raftpb.Entry {
	n, size := 0, uint64(0)
	for n < len(entries) {
		size += uint64(proto.Size(entries[n]))
		if n > 0 && size > bytesMax {
			break
		}
		n++
	}
	return append([]*raftpb.Entry(nil), entries[:n]...)
}

func (s *storage) Term(index uint64) (uint64, error) {
	if index+1 < s.log.First() {
		return 0, raft.ErrCompacted
	}
	if index > s.log.Last() {
		return 0, raft.ErrUnavailable
	}
	term, err := s.log.Term(index)
	if err != nil && index+1 < s.log.First() {
		return 0, raft.ErrCompacted // meanwhile
	}
	if err != nil {
		return 0, s.failed(fmt.Errorf("read the log: %w", err))
	}
	return term, nil
}

func (s *storage) FirstIndex() (uint64, error) { return s.log.First(), nil }
func (s *storage) LastIndex() (uint64, error)  { return s.log.Last(), nil }

// Snapshot is asked for by raft when a follower needs entries that are cut off.
func (s *storage) Snapshot() (*raftpb.Snapshot, error) { return s.snapshot() }

func (s *storage) failed(err error) error {
	if s.err == nil {
		s.err = err
	}
	return err
}

// openStorage checks the log against the state and makes both agree. It
// returns gearsfs.ErrDamaged where entries between them are missing, and
// gearsfs.ErrForeign where both belong to another node.
func openStorage(cfg Config) (*storage, error) {
	log := cfg.Log
	s := &storage{log: log, hard: &raftpb.HardState{}, conf: &raftpb.ConfState{}}
	if err := proto.Unmarshal(log.HardState(), s.hard); err != nil {
		return nil, gearsfs.ErrDamaged.Because("hard state: %v", err)
	}
	if err := proto.Unmarshal(cfg.Machine.ConfState(), s.conf); err != nil {
		return nil, gearsfs.ErrDamaged.Because("conf state: %v", err)
	}
	applied, appliedTerm := cfg.Machine.Applied()
	if !cfg.Joined {
		if applied == 0 && log.Last() == 0 {
			if err := s.bootstrap(cfg.ID); err != nil {
				return nil, err
			}
		}
		if err := s.checkFounder(cfg.ID); err != nil {
			return nil, err
		}
	}
	// Only a log that nobody else holds is worth less than the state.
	var conf membership
	conf.set(s.conf)
	if cfg.Intact != nil && (conf.sole(cfg.ID) || applied == 0 && log.First() == 1 && s.checkFounder(cfg.ID) == nil) {
		if err := s.dropLost(applied, cfg.Sure, cfg.Intact); err != nil {
			return nil, err
		}
	}
	switch {
	case log.Last() < applied && !conf.sole(cfg.ID):
		return nil, gearsfs.ErrDamaged.Because("the log ends at %d, but the state is at %d", log.Last(), applied)
	case log.Last() < applied:
		if err := log.Reset(applied, appliedTerm); err != nil {
			return nil, fmt.Errorf("begin the log anew: %w", err)
		}
	case log.First() > applied+1:
		return nil, gearsfs.ErrDamaged.Because("the log begins at %d, but the state is at %d", log.First(), applied)
	}
	if err := s.checkTerm(applied, appliedTerm); err != nil {
		return nil, err
	}
	return s, s.settleHard(applied, appliedTerm)
}

// checkFounder holds the log of a node that did not join against its first
// entry, where that is still there: it made the node its group's only voter.
func (s *storage) checkFounder(id uint64) error {
	if s.log.First() != 1 || s.log.Last() == 0 {
		return nil
	}
	entries, err := s.log.Entries(1, 2, 1<<20)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	kind := raftpb.EntryType(entries[0].Type)
	change, err := decodeConf(&raftpb.Entry{Type: &kind, Data: entries[0].Data})
	if err != nil {
		return gearsfs.ErrDamaged.Because("entry 1: %v", err)
	}
	if c := change.AsV2().GetChanges(); len(c) != 1 || c[0].GetNodeId() != id {
		return gearsfs.ErrForeign.Because("the log is not that of node %x", id)
	}
	return nil
}

// bootstrap begins a fresh log with the entry that makes this node its group's
// only voter. The same id makes the same bytes, so a crash between this and
// what follows changes nothing.
func (s *storage) bootstrap(id uint64) error {
	kind, change, err := raftpb.MarshalConfChange(&raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: &id}},
	})
	if err != nil {
		return fmt.Errorf("encode conf change: %w", err)
	}
	s.hard = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	hard, err := proto.Marshal(s.hard)
	if err != nil {
		return fmt.Errorf("encode hard state: %w", err)
	}
	first := LogEntry{Index: 1, Term: 1, Type: uint8(kind), Data: change}
	if err := s.log.Append([]LogEntry{first}, hard); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}

func (s *storage) checkTerm(applied, appliedTerm uint64) error {
	term, err := s.log.Term(applied)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if term != appliedTerm {
		return gearsfs.ErrDamaged.Because("entry %d has term %d in the log, %d in the state", applied, term, appliedTerm)
	}
	return nil
}

// settleHard raises or lowers what the hard state says to what log and state
// show: the commit index is written only along with other things, and a power
// cut takes the end of a log that was never synced.
func (s *storage) settleHard(applied, appliedTerm uint64) error {
	lastTerm, err := s.log.Term(s.log.Last())
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if term := max(lastTerm, appliedTerm); s.hard.GetTerm() < term {
		s.hard = &raftpb.HardState{Term: &term, Commit: s.hard.Commit}
	}
	s.hard.Commit = new(min(max(s.hard.GetCommit(), applied), s.log.Last()))
	return nil
}
