package replica

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// dropLost ends the log of a founder, or of a group of one, in front of the first
// entry behind sure that is not intact, by putting an empty one in its place. It
// looks no further than the first entry that is not applied and brings in other
// members, where the hard state has it committed: they may have been sent what
// follows, under the same index and term. Where it has not, nobody was brought in:
// keepCommit comes first. Nor was anybody where an entry in front of that one is not
// intact: keepCommit's sync would have covered what it refers to.
func (s *storage) dropLost(applied, sure uint64, intact func(*wire.Entry) bool) error {
	for index := max(applied+1, s.log.First()); index <= s.log.Last(); {
		entries, err := s.log.Entries(index, s.log.Last()+1, lostBytes)
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		for i := range entries {
			e := &entries[i]
			switch {
			case raftpb.EntryType(e.Type) != raftpb.EntryNormal && e.Index > 1 && e.Index <= s.hard.GetCommit(): // the first makes the founder its only member
				return nil
			case raftpb.EntryType(e.Type) != raftpb.EntryNormal, len(e.Data) == 0, e.Index <= sure:
				continue
			}
			var entry wire.Entry
			if err := entry.UnmarshalVT(e.Data); err != nil {
				return gearsfs.ErrDamaged.Because("entry %d: %v", e.Index, err)
			}
			if !intact(&entry) {
				return s.endBefore(e)
			}
		}
		index += uint64(len(entries))
	}
	return nil
}

// lostBytes is how much of the log is looked at at once.
const lostBytes = 4 << 20

func (s *storage) endBefore(e *LogEntry) error {
	hard := proto.CloneOf(s.hard)
	commit := min(hard.GetCommit(), e.Index)
	hard.Commit = &commit
	b, err := encodeHard(hard.GetTerm(), hard.GetVote(), commit)
	if err != nil {
		return err
	}
	if err := s.log.Append([]LogEntry{{Index: e.Index, Term: e.Term, Type: e.Type}}, b); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	if err := s.log.Sync(); err != nil {
		return fmt.Errorf("sync the log: %w", err)
	}
	s.hard = hard
	return nil
}
