package mount

import (
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/assert"
)

// A stream's info has what was set of it, and what became of its records.
func TestInfoText(t *testing.T) {
	text := infoText(gearsfs.StreamInfo{
		Key: "k", Records: 3, Leased: 2, Delayed: 1, Bytes: 60, Discarded: 4, Sealed: true,
		Head: gearsfs.Place{Pos: 10, Seq: 5}, Tail: gearsfs.Place{Pos: 70, Seq: 11}, Version: 9, Waiting: 7,
		Limits: gearsfs.Limits{Records: 100, Bytes: 1000},
		Settings: gearsfs.Settings{
			Age: 90 * time.Second, Full: gearsfs.FullDropOldest, Tries: 8, Type: "json\n", AppendOnly: true, Memory: true,
		},
	})
	assert.Equal(t, `key k
records 3
leased 2
delayed 1
bytes 60
head 5
tail 11
head_pos 10
tail_pos 70
version 9
waiting 7
sealed true
discarded 4
limit_records 100
limit_bytes 1000
limit_age_seconds 90
full drop-oldest
tries 8
type json?
id_window_seconds 86400
append_only true
store memory
`, text)
}

// .gears/nodes has the columns of gearsfs nodes; a remote that is known by name has
// none of a node's figures.
func TestNodesText(t *testing.T) {
	text := nodesText([]gearsfs.NodeInfo{
		{
			Member: gearsfs.Member{Name: "a", Addrs: "a:1"}, Role: "leader", Reachable: true,
			Term: 2, Commit: 30, Applied: 29, LagEntries: 1, LagBytes: 128,
		},
		{Member: gearsfs.Member{Name: "b", Addrs: "b:1"}, Role: "voter", Trouble: "no answer"},
	}, map[string]string{"far": "c:1"})
	assert.Equal(t, ""+
		"NODE  ROLE    STATE  TERM  COMMIT  APPLIED  LAG  BYTES  ADDRESS  NOTE\n"+
		"a     leader  up     2     30      29       1    128    a:1      \n"+
		"b     voter   away   -     -       -        -    -      b:1      no answer\n"+
		"far   remote  -      -     -       -        -    -      c:1      \n", text)
}

// .gears/status has the lines of gearsfs status; only the way to the node is not
// known here.
func TestStatusText(t *testing.T) {
	at := time.Unix(100, 0).UTC()
	text := statusText(gearsfs.NodeStatus{
		Name: "a", Volume: "main", Version: "v1", Role: "voter", Term: 2, Commit: 30, Applied: 28, Durable: 27,
		LogBytes: 5, StateBytes: 6, Sessions: 7, Waits: 8, Usage: gearsfs.Usage{BytesTotal: 9, BytesFree: 10, Inodes: 11},
		Started: at, Warnings: []string{"two voters"}, Member: 0xbeef, Last: 31, Voters: 2, Learners: 1,
	})
	assert.Equal(t, `node a
member beef
volume main
version v1
role voter
leader -
leader_since -
voters 2
learners 1
term 2
last 31
commit 30
applied 28
durable 27
lag 2
log_bytes 5
state_bytes 6
bytes_total 9
bytes_free 10
inodes 11
sessions 7
waits 8
started 1970-01-01T00:01:40Z
warning two voters
`, text)
}

// Names have tabs and line ends, and keys bytes that are no UTF-8; a wait is one
// row all the same, in the columns of the heading.
func TestWaitsOfAnyNames(t *testing.T) {
	now := time.Unix(100, 0)
	text := waitsText([]gearsfs.Wait{{
		Op: "take", Path: "/a\tb\nc", Keys: []gearsfs.Key{"k\xff", "l"}, Since: now.Add(-time.Second), Client: "x",
	}}, now)
	assert.Equal(t, ""+
		"OP    FILE    KEYS  WAITING  PASSED  CLIENT  NEAR\n"+
		"take  /a?b?c  k\ufffd,l  1s       0       x       \n", text)
}
