package dgm_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// limited is a stream with room for two records, which are there, and a leader
// whose gate is the test's.
type limited struct {
	t        *testing.T
	ctx      context.Context
	m, other *dgm.Local
	ten      *dgm.Tenure
	puts     sync.WaitGroup
}

var limitedFile = gearsfs.At("/limited")

func newLimited(t *testing.T) *limited {
	vol := openVolume(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	s := &limited{t: t, ctx: ctx, m: local(t, vol), other: local(t, vol), ten: vol.Tenure()}
	_, err := s.m.Put(ctx, dgm.Put{File: limitedFile, Key: "k", Records: records("first", "second")})
	require.NoError(t, err)
	require.NoError(t, s.m.Configure(ctx, limitedFile, "k", dgm.StreamChange{Limits: &gearsfs.Limits{Records: 2}}))
	return s
}

func records(texts ...string) []gearsfs.NewRecord {
	var rs []gearsfs.NewRecord
	for _, text := range texts {
		rs = append(rs, gearsfs.NewRecord{Data: []byte(text)})
	}
	return rs
}

// put begins a put and returns when it is held back or waits. What it returns
// cancels it.
func (s *limited) put(m dgm.Manager, text string) (cancel func()) {
	held, waiting := s.ten.Busy()
	ctx, stop := context.WithCancel(s.ctx)
	s.puts.Go(func() {
		_, err := m.Put(ctx, dgm.Put{File: limitedFile, Key: "k", Records: records(text)})
		if err != nil && ctx.Err() == nil {
			s.t.Errorf("put %s: %v", text, err)
		}
	})
	s.until(func(h, w int) bool { return h+w == held+waiting+1 })
	return stop
}

// take takes what is there, which must be this.
func (s *limited) take(want ...string) {
	rs, err := s.m.Take(s.ctx, dgm.Take{File: limitedFile, Keys: []gearsfs.Key{"k"}, Max: len(want)})
	var got []string
	for _, r := range rs {
		got = append(got, string(r.Data))
	}
	if err != nil || !slices.Equal(want, got) {
		s.t.Errorf("took %v, %v, not %v", got, err, want)
	}
}

// until waits until the tenure is busy in some way: nothing announces that.
func (s *limited) until(busy func(held, waiting int) bool) {
	look := time.NewTicker(100 * time.Microsecond)
	defer look.Stop()
	for !busy(s.ten.Busy()) {
		select {
		case <-look.C:
		case <-s.ctx.Done():
			require.NoError(s.t, s.ctx.Err())
		}
	}
}

// drain takes everything that was put, in order, when all is let through.
func (s *limited) drain(want ...string) {
	for _, text := range want {
		s.take(text)
	}
	s.puts.Wait()
	require.Empty(s.t, s.ten.Leftovers())
}

// A put that finds another session's waiting for room does not overtake one of
// its own session that is still in the log.
func TestPutsKeepOrderBehindOneInTheLog(t *testing.T) {
	s := newLimited(t)
	s.ten.HoldBack()
	s.put(s.other, "other")
	s.put(s.m, "one")
	s.ten.LetThrough(1)
	s.until(func(held, waiting int) bool { return held == 1 && waiting == 1 })
	s.put(s.m, "two")
	s.ten.LetAllThrough()
	s.drain("first", "second", "other", "one", "two")
}

// Nor does one overtake another in the log whose own predecessor waits.
func TestPutsKeepOrderAroundOneInTheLog(t *testing.T) {
	s := newLimited(t)
	s.ten.HoldBack()
	s.put(s.m, "one")
	s.put(s.m, "two")
	s.ten.LetThrough(1)
	s.until(func(held, waiting int) bool { return held == 1 && waiting == 1 })
	s.put(s.m, "three")
	s.ten.LetAllThrough()
	s.drain("first", "second", "one", "two", "three")
}

// One that waits is not tried before an earlier one of its session has come out
// of the log, and then is, although nobody makes room at that moment.
func TestPutIsNotTriedBeforeItsPredecessor(t *testing.T) {
	for _, test := range []struct {
		name  string
		order []string // in which they come to the log
	}{{"which finds no room", []string{"one", "take"}}, {"which finds room", []string{"take", "one"}}} {
		t.Run(test.name, func(t *testing.T) {
			s := newLimited(t)
			s.ten.HoldBack()
			cancel := s.put(s.other, "other")
			var taken sync.WaitGroup
			for _, what := range test.order {
				if what == "one" {
					s.put(s.m, "one")
					continue
				}
				held, _ := s.ten.Busy()
				taken.Go(func() { s.take("first", "second") })
				s.until(func(h, _ int) bool { return h == held+1 })
			}
			s.ten.LetThrough(1)
			s.until(func(held, waiting int) bool { return held == 2 && waiting == 1 })
			s.put(s.m, "two")
			cancel()
			s.until(func(_, waiting int) bool { return waiting == 1 })
			s.ten.LetAllThrough()
			taken.Wait()
			s.puts.Wait()
			s.drain("one", "two")
		})
	}
}
