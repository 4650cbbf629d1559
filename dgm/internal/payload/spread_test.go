package payload

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/wire"
)

// slow are members who answer when they are told to.
type slow struct {
	quorums [][]gearsfs.MemberID
	answers map[gearsfs.MemberID]chan struct{}
}

func (m *slow) Alone() bool                   { return false }
func (m *slow) Quorums() [][]gearsfs.MemberID { return m.quorums }

func (m *slow) Others() (ids []gearsfs.MemberID) {
	for id := range m.answers {
		ids = append(ids, id)
	}
	return ids
}

func (m *slow) Carry(ctx context.Context, to gearsfs.MemberID, _ Start) (*wire.Response, error) {
	select {
	case <-m.answers[to]:
		return &wire.Response{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// idle is a node with room.
type idle struct{ owned sync.WaitGroup }

func (n *idle) Full() bool                    { return false }
func (n *idle) Certain(context.Context) error { return nil }
func (n *idle) Durable() gearsfs.Index        { return 0 }
func (n *idle) Fatal(err error)               { panic(err) }

func (n *idle) Spawn(f func()) bool {
	n.owned.Go(f)
	return true
}

// TestMajorities: a payload is on the disks of a majority of the voters when it is
// said to be, and while they change of a majority of both the old and the new ones.
func TestMajorities(t *testing.T) {
	type ids = []gearsfs.MemberID
	for name, c := range map[string]struct {
		quorums [][]gearsfs.MemberID
		few     ids // who do not suffice, with this node, member 1
		last    gearsfs.MemberID
	}{
		"of three":           {[]ids{{1, 2, 3}}, ids{4}, 3},
		"of four":            {[]ids{{1, 2, 3, 4}}, ids{2}, 4},
		"without a vote":     {[]ids{{2, 3}}, ids{2}, 3},
		"old ones alone":     {[]ids{{1, 4, 5}, {1, 2, 3}}, ids{2, 3}, 4},
		"new ones alone":     {[]ids{{1, 4, 5}, {1, 2, 3}}, ids{4, 5}, 2},
		"added one":          {[]ids{{1, 2}, {1}}, nil, 2},
		"of the union alone": {[]ids{{2, 3, 4}, {1}}, ids{2}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, err := block.Open(t.TempDir()+"/blocks", block.Options{Self: 1})
				require.NoError(t, err)
				members := &slow{c.quorums, make(map[gearsfs.MemberID]chan struct{})}
				for id := gearsfs.MemberID(2); id <= 5; id++ {
					members.answers[id] = make(chan struct{})
				}
				node := new(idle)
				ctx := t.Context()
				k := &Keeper{store: store, cfg: Config{
					Self: 1, Node: node, Members: members, Busy: ctx, Root: ctx, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
				}}
				k.pending.init()
				stored := make(chan error, 1)
				go func() {
					_, err := k.put(ctx, make([]byte, 3*gearsfs.PageBytes))
					stored <- err
				}()
				for _, id := range c.few {
					close(members.answers[id])
				}
				synctest.Wait()
				require.Empty(t, stored, "a majority is missing")
				close(members.answers[c.last])
				synctest.Wait()
				require.Len(t, stored, 1)
				require.NoError(t, <-stored)
				node.owned.Wait() // who was slow is given up
				require.NoError(t, store.Close())
			})
		})
	}
}
