package stream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func newStream(t testing.TB) *Stream {
	s, err := NewStream(NewState(), new(Memory), time.Now)
	require.NoError(t, err)
	return s
}

func rec(s string) gearsfs.NewRecord { return gearsfs.NewRecord{Data: []byte(s)} }

func mustPut(t testing.TB, s *Stream, data ...string) {
	for _, d := range data {
		_, _, err := s.Put(t.Context(), rec(d))
		require.NoError(t, err)
	}
}

func TestTakersAreServedInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(t)
		got := make([]string, 5)
		for i := range got {
			go func() {
				taken, err := s.Take(t.Context(), 1)
				if err == nil {
					got[i] = string(taken[0].Record.Data)
				}
			}()
			synctest.Wait() // it waits in the line
		}
		mustPut(t, s, "a", "b", "c", "d", "e")
		synctest.Wait()
		require.Equal(t, []string{"a", "b", "c", "d", "e"}, got)
	})
}

func TestACancelledTakerLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := s.Take(ctx, 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(start))
		mustPut(t, s, "kept")
		taken, err := s.Take(ctx, 1) // what is there is taken at once
		require.NoError(t, err)
		require.Equal(t, "kept", string(taken[0].Record.Data))
	})
}

func TestPutsWaitForRoomInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(t)
		s.SetLimits(gearsfs.Limits{Bytes: 10})
		mustPut(t, s, "123456")
		var mu sync.Mutex
		order := make(map[string]gearsfs.Seq)
		ctx, cancel := context.WithCancel(t.Context())
		for _, p := range []struct {
			ctx  context.Context
			data string
		}{{ctx, "big567"}, {t.Context(), "b"}, {t.Context(), "c"}} {
			go func() {
				if seq, _, err := s.Put(p.ctx, rec(p.data)); err == nil {
					mu.Lock()
					order[p.data] = seq
					mu.Unlock()
				}
			}()
			synctest.Wait()
		}
		require.Empty(t, order, "small ones wait behind the big one")
		cancel()
		synctest.Wait()
		require.Equal(t, map[string]gearsfs.Seq{"b": 2, "c": 3}, order, "its turn has passed on")
		_, _, err := s.Put(ctx, rec("too big now"))
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, uint64(3), s.State().Ready)
	})
}

func TestSealEndsTheWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(t)
		mustPut(t, s, "a")
		leased, err := s.Lease(t.Context(), holder, 1)
		require.NoError(t, err)
		var took, followed error
		go func() { _, took = s.Take(t.Context(), 1) }()
		go func() { _, followed = s.Follow(t.Context(), 1, 1) }()
		synctest.Wait()
		s.Seal()
		synctest.Wait()
		require.NoError(t, took, "a leased record may come back")
		require.ErrorIs(t, followed, gearsfs.ErrEnd, "nothing newer can come")
		_, _, err = s.Put(t.Context(), rec("b"))
		require.ErrorIs(t, err, gearsfs.ErrSealed)
		require.NoError(t, s.Ack(holder, leased[0].Place, leased[0].Fence))
		synctest.Wait()
		require.ErrorIs(t, took, gearsfs.ErrEnd)
		require.ErrorIs(t, s.Ack(holder, leased[0].Place, leased[0].Fence), gearsfs.ErrGone)
		_, err = s.Peek(t.Context(), 1)
		require.ErrorIs(t, err, gearsfs.ErrEnd)
	})
}

func TestReturnedRecordsWakeTakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStream(t)
		mustPut(t, s, "a", "b", "c")
		_, err := s.Lease(t.Context(), holder, 3)
		require.NoError(t, err)
		got := make(chan []Taken, 1)
		go func() {
			taken, _ := s.Take(t.Context(), 2)
			got <- taken
		}()
		synctest.Wait()
		require.Empty(t, got)
		s.ReturnAll(holder)
		require.Equal(t, []gearsfs.Seq{1, 2}, seqs(<-got))
	})
}

func TestFollowersSeeAllInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records = 300
		s := newStream(t)
		seen := make([][]gearsfs.Seq, 3)
		for i := range seen {
			go func() {
				var last gearsfs.Seq
				for {
					found, err := s.Follow(t.Context(), last, 1+i)
					if err != nil {
						return
					}
					seen[i] = append(seen[i], seqs(found)...)
					last = found[len(found)-1].Place.Seq
				}
			}()
		}
		for range records {
			mustPut(t, s, "x")
			synctest.Wait()
		}
		s.Seal()
		synctest.Wait()
		for _, got := range seen {
			require.Len(t, got, records)
			require.True(t, slices.IsSorted(got))
		}
	})
}

func TestEveryRecordIsTakenOnce(t *testing.T) {
	const putters, takers, each = 4, 4, 2000
	s := newStream(t)
	s.SetLimits(gearsfs.Limits{Records: 64})
	var done sync.WaitGroup
	for p := range putters {
		done.Go(func() {
			for i := range each {
				if _, _, err := s.Put(t.Context(), rec(fmt.Sprintf("%d %d", p, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	last := make(map[gearsfs.Seq]string)
	var taking sync.WaitGroup
	for range takers {
		taking.Go(func() {
			random := rand.New(rand.NewPCG(1, 2))
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(50))*time.Microsecond)
				taken, err := s.Take(ctx, 1+random.IntN(3))
				cancel()
				if gearsfs.CodeOf(err) == gearsfs.ErrEnd.Code {
					return
				}
				mu.Lock()
				for _, r := range taken {
					if was, twice := last[r.Place.Seq]; twice {
						t.Errorf("%d was taken twice: %s", r.Place.Seq, was)
					}
					last[r.Place.Seq] = string(r.Record.Data)
				}
				mu.Unlock()
			}
		})
	}
	done.Wait()
	s.Seal()
	taking.Wait()
	require.Len(t, last, putters*each)
	next := make([]int, putters)
	for seq := gearsfs.Seq(1); seq <= putters*each; seq++ {
		var p, i int
		_, err := fmt.Sscan(last[seq], &p, &i)
		require.NoError(t, err)
		require.Equal(t, next[p], i, "the puts of one putter keep their order")
		next[p]++
	}
}

// fifoOp is an operation of a recorded history: a put, or a take where take is
// set. The seq in the answer keeps the search short.
type fifoOp struct{ take bool }

// fifoState is what a FIFO whose answers carry seqs is: how many were put and
// how many taken.
type fifoState struct{ put, taken gearsfs.Seq }

var fifoModel = porcupine.Model{
	Init: func() any { return fifoState{} },
	Step: func(state, input, output any) (bool, any) {
		s, seq := state.(fifoState), output.(gearsfs.Seq)
		if !input.(fifoOp).take {
			s.put++
			return seq == s.put, s
		}
		if seq == 0 { // it found nothing
			return s.put == s.taken, s
		}
		s.taken++
		return seq == s.taken && s.taken <= s.put, s
	},
}

func TestLinearizable(t *testing.T) {
	s := newStream(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var clock atomic.Int64
	var mu sync.Mutex
	var history []porcupine.Operation
	var clients sync.WaitGroup
	for c := range 6 {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(uint64(c), 9))
			for range 1000 {
				op := fifoOp{take: random.IntN(2) == 0}
				call := clock.Add(1)
				var seq gearsfs.Seq
				if op.take {
					if taken, err := s.Take(gone, 1); err == nil {
						seq = taken[0].Place.Seq
					}
				} else {
					seq, _, _ = s.Put(t.Context(), rec("x"))
				}
				end := clock.Add(1)
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: c, Input: op, Call: call, Output: seq, Return: end})
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	require.Equal(t, porcupine.Ok, porcupine.CheckOperationsTimeout(fifoModel, history, 30*time.Second))
}
