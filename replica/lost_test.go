package replica

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/gearsfs/gearsfs/wire"
)

// TestDropLost: what a founder's log has behind the last that is sure ends in front
// of the first entry whose payload is lost; but not behind a change that may have
// brought in others. A lost payload is told by the entry's time here.
func TestDropLost(t *testing.T) {
	const lost = 99
	normal := func(index, time uint64) LogEntry {
		data, err := (&wire.Entry{Time: time}).MarshalVT()
		require.NoError(t, err)
		return LogEntry{Index: index, Term: 1, Type: uint8(raftpb.EntryNormal), Data: data}
	}
	other := uint64(8)
	kind, change, err := raftpb.MarshalConfChange(&raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: &other}},
	})
	require.NoError(t, err)
	joins := LogEntry{Index: 4, Term: 1, Type: uint8(kind), Data: change}
	for name, c := range map[string]struct {
		entries []LogEntry // from the second on
		commit  uint64
		sure    uint64
		ends    uint64 // 0: nothing is lost
	}{
		"all is there":              {entries: []LogEntry{normal(2, 5), normal(3, 6)}, commit: 1},
		"lost":                      {entries: []LogEntry{normal(2, 5), normal(3, lost), normal(4, 7)}, commit: 1, ends: 3},
		"lost at the end":           {entries: []LogEntry{normal(2, 5), normal(3, lost)}, commit: 3, ends: 3},
		"sure":                      {entries: []LogEntry{normal(2, lost), normal(3, 6)}, commit: 1, sure: 2},
		"behind what is sure":       {entries: []LogEntry{normal(2, lost), normal(3, lost)}, commit: 1, sure: 2, ends: 3},
		"in front of the joiner":    {entries: []LogEntry{normal(2, lost), normal(3, 6), joins}, commit: 4, ends: 2},
		"behind one who joined":     {entries: []LogEntry{normal(2, 5), normal(3, 6), joins, normal(5, lost)}, commit: 4},
		"behind one who has not":    {entries: []LogEntry{normal(2, 5), normal(3, 6), joins, normal(5, lost)}, commit: 3, ends: 5},
		"long after one who joined": {entries: []LogEntry{normal(2, 5), normal(3, 6), joins, normal(5, 7), normal(6, lost)}, commit: 6},
	} {
		t.Run(name, func(t *testing.T) {
			log, machine := new(memLog), new(memMachine)
			s := storage{log: log}
			require.NoError(t, s.bootstrap(7))
			hard, err := encodeHard(1, 7, c.commit)
			require.NoError(t, err)
			require.NoError(t, log.Append(c.entries, hard))
			cfg := testConfig(log, machine, nil)
			cfg.Sure = c.sure
			cfg.Intact = func(e *wire.Entry) bool { return e.Time != lost }
			opened, err := openStorage(cfg)
			require.NoError(t, err)
			last := c.ends
			if last == 0 {
				last = uint64(1 + len(c.entries))
			}
			require.Equal(t, last, log.Last())
			if c.ends != 0 {
				require.Equal(t, last, log.crash(0).Last(), "it is on disk")
			}
			entries, err := log.Entries(last, last+1, 1<<20)
			require.NoError(t, err)
			require.Equal(t, c.ends != 0, len(entries[0].Data) == 0)
			require.LessOrEqual(t, opened.hard.GetCommit(), last)
		})
	}
}
