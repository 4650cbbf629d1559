package mesh

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm/internal/answer"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// verifyNodes are connected nodes with the same state; what the first proposes
// is applied by all.
func verifyNodes(t *testing.T, count int) []*snapNode {
	t.Helper()
	nodes := snapNodes(t, count, 1<<20)
	meta := nodes[0].snapshot()
	for _, n := range nodes[1:] {
		require.NoError(t, <-nodes[0].send(n, meta))
		n.index = n.applied()
	}
	for _, n := range nodes {
		n.verify(func(_ context.Context, cmd *wire.Command) error {
			for _, o := range nodes {
				if o.data != nil {
					o.apply(cmd)
				}
			}
			return nil
		}, 0)
		for _, o := range nodes {
			n.reaches(o.meshNode)
		}
	}
	return nodes
}

// verify gives a node its verifier.
func (n *snapNode) verify(propose func(context.Context, *wire.Command) error, every time.Duration) {
	n.mesh.verifier = makeVerifier(verifierConfig{
		every: every, log: slog.New(slog.DiscardHandler), mesh: n.mesh, pace: newPace(1 << 40),
		propose: propose, leads: func() bool { return true }, applied: n.applied, size: func() uint64 { return 0 },
	})
	n.ops = func(op *wire.NodeOp) *wire.Response {
		resp, err := n.mesh.verifier.answer(n.t.Context(), op)
		if err != nil {
			return answer.Failure(err)
		}
		return resp
	}
}

// corrupt changes a row behind the machine's back, and back again.
func (n *snapNode) corrupt() (repair func()) {
	n.t.Helper()
	key := persist.RemoteKey("nobody")
	n.data.State.Set(key, []byte("nothing"))
	require.NoError(n.t, n.data.State.Commit())
	return func() {
		n.data.State.Delete(key)
		require.NoError(n.t, n.data.State.Commit())
	}
}

func TestVerify(t *testing.T) {
	nodes := verifyNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	require.NoError(t, a.mesh.verifier.compare(t.Context()))
	for _, n := range nodes {
		require.Empty(t, n.mesh.Warnings())
	}

	repair := c.corrupt()
	err := a.mesh.verifier.compare(t.Context())
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	require.ErrorContains(t, err, "the state of n3 differs from that of n1, n2")
	require.Contains(t, a.mesh.Warnings()[0], "n3")
	require.Empty(t, b.mesh.Warnings())
	require.Contains(t, c.mesh.Warnings()[0], "n3")

	repair()
	require.NoError(t, a.mesh.verifier.compare(t.Context()))
	for _, n := range nodes {
		require.Empty(t, n.mesh.Warnings(), "all is well again")
	}

	// Who compares may be the one that differs.
	a.corrupt()
	require.ErrorContains(t, a.mesh.verifier.compare(t.Context()), "the state of n1 differs from that of n2, n3")

	// Who can't be asked is not compared, and then nobody has a majority.
	c.shut()
	c.unlisten()
	eventually(t, func() bool {
		ok, _ := a.mesh.reachable(3)
		return !ok
	}, "it is still reached")
	err = a.mesh.verifier.compare(t.Context())
	require.ErrorIs(t, err, gearsfs.ErrDamaged)
	require.ErrorContains(t, err, "the states of n1, n2 differ")
	require.ErrorContains(t, err, "not compared: n3 (")
	require.Contains(t, b.mesh.Warnings()[0], "none has a majority")
}

func TestVerifyMissing(t *testing.T) {
	nodes := verifyNodes(t, 2)
	a, b := nodes[0], nodes[1]
	b.shut()
	b.unlisten()
	eventually(t, func() bool {
		ok, _ := a.mesh.reachable(2)
		return !ok
	}, "it is still reached")
	err := a.mesh.verifier.compare(t.Context())
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
	require.ErrorContains(t, err, "not compared: n2 (")
}

// A node that came to be behind an entry by a snapshot never saw it.
func TestVerifyPassedOver(t *testing.T) {
	nodes := verifyNodes(t, 1)
	x := nodes[0].mesh.verifier
	_, err := x.await(t.Context(), nodes[0].applied()-1)
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = x.await(ctx, nodes[0].applied()+1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// One state is hashed at a time, and of those that wait only the last.
func TestVerifyOneAtATime(t *testing.T) {
	nodes := verifyNodes(t, 1)
	x := nodes[0].mesh.verifier
	x.cfg.pace.perSecond = 1 // the first takes for ever
	for index := range uint64(3) {
		x.observe(1000+index, nodes[0].data.State.View())
		eventually(t, func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.now == 1000
		}, "it is not begun")
	}
	_, err := x.await(t.Context(), 1001)
	require.ErrorIs(t, err, gearsfs.ErrBusy)
	require.Equal(t, uint64(1001), x.first(1000))
	require.Equal(t, uint64(1000), x.first(999))
}

// The leader compares by itself, but only where something has happened.
func TestVerifyRegularly(t *testing.T) {
	nodes := verifyNodes(t, 2)
	a := nodes[0]
	var times atomic.Int64
	propose := a.mesh.verifier.cfg.propose
	a.verify(func(ctx context.Context, cmd *wire.Command) error {
		times.Add(1)
		return propose(ctx, cmd)
	}, time.Millisecond)
	nodes[1].corrupt()
	a.mesh.verifier.begin()
	eventually(t, func() bool { return len(nodes[1].mesh.Warnings()) == 1 }, "nobody compares")
	require.Equal(t, int64(1), times.Load(), "nothing has happened since")
}

func TestJudge(t *testing.T) {
	for _, test := range []struct{ sums, differ, right string }{
		{"aaa", "", "012"},
		{"aab", "2", "01"},
		{"abb", "0", "12"},
		{"ab", "01", ""},
		{"abc", "012", ""},
		{"a-a", "", "02"},
		{"a--", "", "0"},
		{"aab-b", "0124", ""},
		{"aabbb", "01", "234"},
	} {
		var all []found
		for i, sum := range test.sums {
			f := found{member: gearsfs.Member{ID: gearsfs.MemberID(i + 1), Name: fmt.Sprint(i)}, sum: []byte(string(sum))}
			if sum == '-' {
				f.err = gearsfs.ErrNoNode
			}
			all = append(all, f)
		}
		v := judge(all)
		join := func(members []gearsfs.Member) (s string) {
			for _, m := range members {
				s += m.Name
			}
			return s
		}
		require.Equal(t, test.differ, join(v.differ), test.sums)
		require.Equal(t, test.right, join(v.right), test.sums)
		require.Equal(t, len(v.differ) > 0, v.trouble() != "")
		require.Equal(t, slices.Contains([]string{"aaa"}, test.sums), v.err() == nil)
	}
}
