package dgm

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

func TestEditDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"same", "same", 0},
		{"word", "wrod", 1}, {"word", "sword", 1}, {"word", "wor", 1}, {"word", "ward", 1},
		{"kitten", "sitting", 3}, {"ca", "abc", 3}, {"ab", "ba", 1}, {"\xff\xfe", "\xfe\xff", 1},
	} {
		require.Equal(t, test.want, editDistance(test.a, test.b), "%q %q", test.a, test.b)
		require.Equal(t, test.want, editDistance(test.b, test.a), "%q %q", test.b, test.a)
	}
}

func TestNearest(t *testing.T) {
	for _, test := range []struct{ keys, names, want []gearsfs.Key }{
		{[]gearsfs.Key{"counts"}, []gearsfs.Key{"coutn", "count", "words", "counts"}, []gearsfs.Key{"count", "coutn"}},
		{[]gearsfs.Key{"counts", "words"}, []gearsfs.Key{"wrods", "county"}, []gearsfs.Key{"wrods", "county"}},
		{[]gearsfs.Key{"ab"}, []gearsfs.Key{"ac", "ba"}, nil}, // half of it would be typed wrong
		{[]gearsfs.Key{"abc"}, []gearsfs.Key{"abd"}, []gearsfs.Key{"abd"}},
		{[]gearsfs.Key{"result"}, []gearsfs.Key{"result-long"}, nil},
	} {
		require.Equal(t, test.want, nearest(test.keys, test.names), "%v", test.keys)
	}
}

func TestSpaceAdmission(t *testing.T) {
	refused := []*wire.Command{
		{Op: &wire.Command_Put{}}, {Op: &wire.Command_Write{}}, {Op: &wire.Command_Make{}}, {Op: &wire.Command_Link{}},
		{Op: &wire.Command_SetXattr{}}, {Op: &wire.Command_Allocate{}}, {Op: &wire.Command_SetRemote{}}, {Op: &wire.Command_Save{}},
	}
	admitted := []*wire.Command{
		{Op: &wire.Command_Take{}}, {Op: &wire.Command_Settle{}}, {Op: &wire.Command_Unlink{}},
		{Op: &wire.Command_Configure{}}, {Op: &wire.Command_EndSession{}}, {Op: &wire.Command_Release{}},
	}
	s := space{clock: func() time.Time { return time.Unix(0, 0) }} // whose reading never ages
	for _, cmd := range append(refused, admitted...) {
		wantErr := len(refused) > 0 && cmd == refused[0]
		if wantErr {
			refused = refused[1:]
		}
		s.free.Store(0)
		if wantErr {
			require.ErrorIs(t, s.admit(cmd), gearsfs.ErrNoSpace, "%T", cmd.Op)
		} else {
			require.NoError(t, s.admit(cmd), "%T", cmd.Op)
		}
		s.free.Store(1)
		require.NoError(t, s.admit(cmd), "%T", cmd.Op)
	}
}

func TestGate(t *testing.T) {
	ops := func(n, bytes int) []*op {
		out := make([]*op, n)
		for i := range out {
			out[i] = &op{bytes: bytes}
		}
		return out
	}
	for _, test := range []struct {
		name            string
		commands, bytes int // let through before
		n, each         int
		want            bool
	}{
		{"few", 10, 1000, 2, 100, true},
		{"too many bytes", 1, gateBytes - 100, 1, 101, false},
		{"just enough bytes", 1, gateBytes - 100, 1, 100, true},
		{"too many commands", gateCommands - 1, 0, 2, 1, false},
		{"just enough commands", gateCommands - 2, 0, 2, 1, true},
		{"alone, whatever its size", 0, 0, 1, 2 * gateBytes, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := gate{commands: test.commands, bytes: test.bytes}
			require.Equal(t, test.want, g.admitLocked(ops(test.n, test.each)))
			added := 0
			if test.want {
				added = test.n
			}
			require.Equal(t, test.commands+added, g.commands)
			require.Equal(t, test.bytes+added*test.each, g.bytes)
		})
	}
}

// Of all who are inside, or shut the door, exactly one is the last.
func TestDoor(t *testing.T) {
	for range 200 {
		var d door
		var last, inside int
		var mu sync.Mutex
		var wg sync.WaitGroup
		note := func(isLast bool) {
			mu.Lock()
			defer mu.Unlock()
			if isLast {
				last++
			}
		}
		for range 8 {
			wg.Go(func() {
				if d.enter() {
					mu.Lock()
					inside++
					mu.Unlock()
					note(d.leave())
				}
			})
		}
		wg.Go(func() { note(d.shut()) })
		wg.Wait()
		require.Equal(t, 1, last, "%d were inside", inside)
		require.False(t, d.enter())
	}
}

// A watch that misses changes says so, also to one who waits already.
func TestWatchOverflow(t *testing.T) {
	many := make([]file.Changed, watchPendingMax+1)
	var ws watches
	ws.init()
	wr := &watcher{ws: &ws, by: func() gearsfs.SessionID { return gearsfs.SessionID{Salt: 1} }}
	for _, waits := range []bool{true, false} {
		var id uint64
		wr.start(0, func(r *wire.Response) { id = r.Number })
		var answers []*wire.Response
		fetch := func() { wr.start(id, func(r *wire.Response) { answers = append(answers, r) }) }
		if waits {
			fetch()
			require.Empty(t, answers)
		}
		ws.tell(many)
		if !waits {
			fetch()
		}
		require.Len(t, answers, 1)
		require.ErrorIs(t, errorOf(answers[0]), gearsfs.ErrOverload)
		fetch()
		require.ErrorIs(t, errorOf(answers[1]), gearsfs.ErrOverload)
		require.Empty(t, wr.now.pending)
	}
	wr.close(gearsfs.ErrClosed)
	require.Empty(t, ws.all)
}

// However long some calls wait, what is confirmed follows the newest, and what
// has no answer is never confirmed.
func TestInflightConfirm(t *testing.T) {
	change := func() *remoteCall {
		return &remoteCall{bytes: 1, req: &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{}}}}
	}
	f := inflight{nextSeq: 1}
	confirmed, but := f.confirm()
	require.EqualValues(t, 1, confirmed)
	require.Empty(t, but)
	wait1, query, wait2 := change(), &remoteCall{req: &wire.Request{}}, change()
	for _, c := range []*remoteCall{wait1, query, wait2} {
		f.add(c)
	}
	var node uint64 // what the node takes as confirmed
	var open []uint64
	for range 10 * confirmLag {
		c := change()
		f.add(c)
		confirmed, but := f.confirm()
		if confirmed > node {
			node, open = confirmed, but
		}
		for _, seq := range []uint64{wait1.seq, wait2.seq} {
			require.True(t, seq >= node || len(open) > 0 && (open[0] == seq || open[1] == seq))
		}
		require.LessOrEqual(t, len(open), 3)
		require.LessOrEqual(t, f.nextSeq-max(node, wait1.seq), uint64(confirmLag))
		f.remove(c)
	}
	require.Equal(t, []*remoteCall{wait1, wait2, query}, f.all())
	f.remove(wait1)
	f.remove(query)
	f.remove(wait2)
	confirmed, but = f.confirm()
	require.Equal(t, f.nextSeq, confirmed)
	require.Empty(t, but)
	require.Zero(t, f.count)
	require.Zero(t, f.bytes)
	require.Empty(t, f.all())
}
