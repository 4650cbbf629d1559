package dgm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/tests/bubble"
	"github.com/gearsfs/gearsfs/wire"
)

// leased is the answer to a take that leased a record.
func leased(seq uint64) *wire.Response {
	return &wire.Response{Answer: &wire.Answer{Records: []*wire.TakenRecord{
		{Ino: 8, Key: "k", Seq: seq, Fence: 5, Data: []byte("x")},
	}}}
}

func requireReturn(t *testing.T, a *asked, seq uint64) {
	t.Helper()
	settle := a.req.GetChange().GetCommand().GetSettle()
	require.NotNil(t, settle, "%v", a.req)
	require.True(t, settle.Return)
	require.Len(t, settle.Receipts, 1)
	require.Equal(t, seq, settle.Receipts[0].Seq)
}

// cancelledTake has a take under a lease sent on a link, cancelled, and given up.
func cancelledTake(t *testing.T, r *Remote, l *scriptLink, lose bool) *asked {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	_, failed := takeLeased(ctx, r)
	synctest.Wait()
	kept := l.asked()
	if lose {
		l.lose()
		synctest.Wait()
	}
	cancel()
	began := time.Now()
	require.ErrorIs(t, <-failed, gearsfs.ErrMaybe)
	require.Equal(t, cancelPatience, time.Since(began), "its caller waits no longer than others")
	return kept[len(kept)-1]
}

func takeLeased(ctx context.Context, r *Remote) (chan []gearsfs.Record, chan error) {
	return later(func() ([]gearsfs.Record, error) {
		return r.Take(ctx, Take{File: gearsfs.ByIno(8), Keys: []gearsfs.Key{"k"}, Lease: true})
	})
}

// TestCancelledTakeIsGivenBack: a take that was cancelled while the node was away
// may have been made. What it leased goes back, however often the node is lost
// meanwhile, before another take looks for more.
func TestCancelledTakeIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, third := newScriptLink(false), newScriptLink(false), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		lost := cancelledTake(t, r, first, true)
		out, _ := takeLeased(t.Context(), r)
		bubble.Pass(10 * time.Second)

		route.links <- second
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1, "the next take has to wait")
		again := second.asked()[0]
		require.Equal(t, lost.req.GetChange().Command.Seq, again.req.GetChange().Command.Seq)
		require.True(t, again.cancelled.Load(), "nobody waits for a record any more")
		again.done(leased(3))
		synctest.Wait()
		require.Len(t, second.asked(), 2)
		requireReturn(t, second.asked()[1], 3)

		second.lose() // whether it was returned is not known
		route.links <- third
		bubble.Pass(2 * backoffMax)
		require.Len(t, third.asked(), 1)
		requireReturn(t, third.asked()[0], 3)
		require.Equal(t, second.asked()[1].req.GetChange().Command.Seq, third.asked()[0].req.GetChange().Command.Seq)
		require.True(t, third.asked()[0].req.GetChange().Retry)
		third.asked()[0].done(&wire.Response{Answer: &wire.Answer{}})
		synctest.Wait()
		require.Len(t, third.asked(), 2)
		require.Greater(t, third.asked()[1].req.GetChange().Command.Confirmed, again.req.GetChange().Command.Seq, "nothing is owed any more")
		third.asked()[1].done(leased(3))
		require.Len(t, <-out, 1)
	})
}

// TestCancelledTakeThatLeasedNothing holds up the next one no longer than until
// that is known, and not at all where the node has forgotten the session.
func TestCancelledTakeThatLeasedNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(false), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		cancelledTake(t, r, first, true)
		out, _ := takeLeased(t.Context(), r)
		route.links <- second
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1)
		second.asked()[0].done(failure(gearsfs.ErrCancelled))
		synctest.Wait()
		require.Len(t, second.asked(), 2)
		second.asked()[1].done(leased(3))
		require.Len(t, <-out, 1)

		cancelledTake(t, r, second, true)
		third := newScriptLink(false)
		r.mu.Lock()
		r.spent = r.session
		r.mu.Unlock()
		out, _ = takeLeased(t.Context(), r)
		route.links <- third
		bubble.Pass(backoffMax)
		require.Len(t, third.asked(), 1, "what it leased went with the session")
		require.False(t, third.asked()[0].cancelled.Load())
		third.asked()[0].done(leased(4))
		require.Len(t, <-out, 1)
	})
}

// TestCancelledTakeOfASlowNode: the answer that comes after its caller has gone is
// given back, and a node that does not answer holds up nothing else for ever.
func TestCancelledTakeOfASlowNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(false), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		slow := cancelledTake(t, r, first, false)
		slow.done(leased(3))
		synctest.Wait()
		require.Len(t, first.asked(), 2)
		requireReturn(t, first.asked()[1], 3)
		first.lose() // before that was answered
		route.links <- second
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1)
		out, _ := takeLeased(t.Context(), r)
		bubble.Pass(cancelPatience)
		require.Len(t, second.asked(), 2)
		second.asked()[1].done(leased(4))
		require.Len(t, <-out, 1)
		requireReturn(t, second.asked()[0], 3)
		second.asked()[0].done(&wire.Response{Answer: &wire.Answer{}})
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		require.Zero(t, r.calls.count)
		require.Zero(t, r.given)
	})
}

// TestCancelledTransaction: what it may have leased goes back, and where it was
// not made it is not made later either.
func TestCancelledTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newScriptLink(false), newScriptLink(false)
		r, route := scripted(t, RemoteOptions{}, first)
		ctx, cancel := context.WithCancel(t.Context())
		_, failed := later(func() (*wire.Response, error) {
			return r.call(ctx, &wire.Request{Kind: &wire.Request_Change{Change: &wire.Change{Command: &wire.Command{
				Op: &wire.Command_Transact{Transact: &wire.Transact{Steps: []*wire.Step{
					{Op: &wire.Step_Take{Take: &wire.Take{Target: &wire.Target{Ino: 8}, Keys: []string{"k"}, Lease: true}}},
				}}},
			}}}})
		})
		synctest.Wait()
		first.lose()
		cancel()
		require.ErrorIs(t, <-failed, gearsfs.ErrMaybe)
		route.links <- second
		bubble.Pass(backoffMax)
		require.Len(t, second.asked(), 1)
		again := second.asked()[0].req.GetChange()
		require.NotNil(t, again.Command.GetConfirm())
		require.Equal(t, first.asked()[0].req.GetChange().Command.Seq, again.Command.Seq)
		require.True(t, again.Retry)
		second.asked()[0].done(&wire.Response{Answer: &wire.Answer{Steps: []*wire.Answer{leased(3).Answer}}})
		synctest.Wait()
		require.Len(t, second.asked(), 2)
		requireReturn(t, second.asked()[1], 3)
		second.asked()[1].done(&wire.Response{Answer: &wire.Answer{}})
	})
}

// TestCancelledTakeOfARequest: a mount's take is given back as others are, though it
// has a number that another process could go on with.
func TestCancelledTakeOfARequest(t *testing.T) {
	for name, lasting := range map[string]*Lasting{"lasting": {Note: func(gearsfs.SessionID, uint64) {}}, "not lasting": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := newScriptLink(false), newScriptLink(false)
				r, route := scripted(t, RemoteOptions{Lasting: lasting}, first)
				var numbers []Numbered
				request := &Once{Record: func(n Numbered) { numbers = append(numbers, n) }}
				ctx, cancel := context.WithCancel(WithOnce(t.Context(), request))
				_, failed := takeLeased(ctx, r)
				synctest.Wait()
				first.lose()
				cancel()
				require.ErrorIs(t, <-failed, gearsfs.ErrMaybe)
				request.Done()
				route.links <- second
				bubble.Pass(2 * backoffMax)
				require.Len(t, second.asked(), 1)
				again := second.asked()[0].req.GetChange()
				require.NotNil(t, again.Command.GetTake())
				require.Equal(t, first.asked()[0].req.GetChange().Command.Seq, again.Command.Seq)
				require.True(t, second.asked()[0].cancelled.Load())
				second.asked()[0].done(leased(3))
				synctest.Wait()
				require.Len(t, second.asked(), 2)
				requireReturn(t, second.asked()[1], 3)
				second.asked()[1].done(&wire.Response{Answer: &wire.Answer{}})
				synctest.Wait()
				if lasting != nil {
					require.Len(t, numbers, 1, "the return is none of the request's")
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				require.Zero(t, r.calls.count)
				require.Empty(t, r.calls.held)
			})
		})
	}
}
