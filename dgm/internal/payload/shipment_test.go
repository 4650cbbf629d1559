package payload

import (
	"bytes"
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

// harbour is the one other member: it counts what comes, and takes a load when told.
type harbour struct {
	mu    sync.Mutex
	came  int
	takes chan struct{}
}

func (*harbour) Alone() bool                   { return false }
func (*harbour) Quorums() [][]gearsfs.MemberID { return [][]gearsfs.MemberID{{1, 2}} }
func (*harbour) Others() []gearsfs.MemberID    { return []gearsfs.MemberID{2} }

func (h *harbour) Carry(ctx context.Context, _ gearsfs.MemberID, _ Start) (*wire.Response, error) {
	h.mu.Lock()
	h.came++
	h.mu.Unlock()
	select {
	case <-h.takes:
		return &wire.Response{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *harbour) loads() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.came
}

// put is one that is under way.
type put struct {
	payload []byte
	cancel  context.CancelFunc
	extents []gearsfs.Extent
	err     error
}

type shipmentRig struct {
	*Keeper
	t       *testing.T
	harbour *harbour
	node    *idle
	close   context.CancelFunc
}

func newShipmentRig(t *testing.T) *shipmentRig {
	store, err := block.Open(t.TempDir()+"/blocks", block.Options{Self: 1})
	require.NoError(t, err)
	r := &shipmentRig{t: t, harbour: &harbour{takes: make(chan struct{})}, node: new(idle)}
	var busy context.Context
	busy, r.close = context.WithCancel(t.Context())
	r.Keeper = &Keeper{store: store, cfg: Config{
		Self: 1, Node: r.node, Members: r.harbour, Busy: busy, Root: busy, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}}
	r.pending.init()
	return r
}

// begin begins to put n bytes, and returns when all waits.
func (r *shipmentRig) begin(fill byte, n int) *put {
	ctx, cancel := context.WithCancel(r.t.Context())
	p := &put{payload: bytes.Repeat([]byte{fill}, n), cancel: cancel}
	r.node.owned.Go(func() { p.extents, p.err = r.put(ctx, p.payload) })
	synctest.Wait()
	return p
}

func (r *shipmentRig) end() {
	r.close()
	r.node.owned.Wait()
	require.NoError(r.t, r.store.Close())
}

// uploads is how many extents are pending.
func (r *shipmentRig) uploads() (n int) {
	r.pending.mu.Lock()
	defer r.pending.mu.Unlock()
	for _, s := range r.pending.segments {
		n += s.uploads
	}
	return n
}

// TestShipment: payloads that come while others are on their way go as one, and each
// gets the extents of its own bytes, with pages of its own.
func TestShipment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShipmentRig(t)
		defer r.end()
		puts := []*put{r.begin(1, 5000), r.begin(2, 4096)} // as many as there are ships
		require.Equal(t, shipsMax, r.harbour.loads())
		for i, n := range []int{1, 4096, 4097, parcelMax, 12288, 100} {
			puts = append(puts, r.begin(byte(3+i), n))
		}
		gone := r.begin(99, 4096)
		gone.cancel()
		synctest.Wait()
		require.ErrorIs(t, gone.err, context.Canceled)
		require.Len(t, r.shipping.waiting, len(puts)-shipsMax, "its bytes may be others by now")
		require.Equal(t, shipsMax, r.harbour.loads())
		for range shipsMax {
			r.harbour.takes <- struct{}{}
		}
		synctest.Wait()
		require.Equal(t, shipsMax+1, r.harbour.loads(), "the rest is one load")
		r.harbour.takes <- struct{}{}
		synctest.Wait()
		pages := map[uint64]bool{}
		for _, p := range puts {
			require.NoError(t, p.err)
			require.Len(t, p.extents, 1)
			e := p.extents[0]
			require.NoError(t, e.Check())
			got := make([]byte, len(p.payload))
			require.NoError(t, r.store.Read(e, 0, e.Length, got))
			require.Equal(t, p.payload, got)
			for at := e.At; at < e.At+e.Size; at += gearsfs.PageBytes {
				require.False(t, pages[at], "two have a page in common")
				pages[at] = true
			}
		}
		require.Equal(t, len(puts), r.uploads())
	})
}

// TestShipmentOfMany: a load has no more than a record's bytes, and what comes behind
// goes with the next.
func TestShipmentOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShipmentRig(t)
		defer r.end()
		var puts []*put
		for range shipsMax + shipmentMax/parcelMax + 1 {
			puts = append(puts, r.begin(7, parcelMax))
		}
		for range shipsMax + 2 {
			r.harbour.takes <- struct{}{}
		}
		synctest.Wait()
		for _, p := range puts {
			require.NoError(t, p.err)
		}
		require.Equal(t, shipsMax+2, r.harbour.loads())
	})
}

// TestShipmentThatNobodyAwaits: what somebody gave up while it was under way goes back,
// and those that it went with stay.
func TestShipmentThatNobodyAwaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShipmentRig(t)
		defer r.end()
		first, other := r.begin(1, 4096), r.begin(2, 4096)
		first.cancel()
		synctest.Wait()
		require.ErrorIs(t, first.err, context.Canceled)
		require.Equal(t, 2, r.uploads())
		for range shipsMax {
			r.harbour.takes <- struct{}{}
		}
		synctest.Wait()
		require.NoError(t, other.err)
		require.Equal(t, 1, r.uploads())
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Len(t, r.ready, 1, "it is to be freed")
		require.NotEqual(t, other.extents[0].At, r.ready[0].At)
	})
}

// TestShipmentAtTheEnd: a node that closes fails what waits, and what is under way.
func TestShipmentAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShipmentRig(t)
		puts := []*put{r.begin(1, 4096), r.begin(2, 4096), r.begin(3, 4096)}
		r.end()
		for _, p := range puts {
			require.ErrorIs(t, p.err, gearsfs.ErrClosed)
		}
	})
}
