package wordcount

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func someReports() []*report {
	return []*report{
		{},
		{Failure: "why"},
		{Settled: []workID{{1, 2}, {1 << 60, 4}}, Total: Counts{1, 2, 3}},
		{Work: &work{
			ID: workID{9, 5}, Spans: []span{{5, 5}, {7, 1 << 40}}, Counts: Counts{4, 5, 6},
			Words: []Frequency{{"", 1}, {"a\x00b", 1 << 50}},
		}},
	}
}

func TestReportsTravel(t *testing.T) {
	for _, r := range someReports() {
		got, err := unmarshalReport(r.marshal())
		require.NoError(t, err)
		require.Equal(t, r, got)
	}
}

func TestADamagedReportIsAnError(t *testing.T) {
	for _, r := range someReports() {
		data := r.marshal()
		for n := range data {
			_, err := unmarshalReport(data[:n])
			require.ErrorIs(t, err, gearsfs.ErrProtocol, "cut behind %d of %d bytes", n, len(data))
		}
		_, err := unmarshalReport(append(data, 0))
		require.ErrorIs(t, err, gearsfs.ErrProtocol, "with a byte too many")
		data[0] = 99
		_, err = unmarshalReport(data)
		require.ErrorIs(t, err, gearsfs.ErrVersion)
	}
}

func FuzzReport(f *testing.F) {
	for _, r := range someReports() {
		f.Add(r.marshal())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := unmarshalReport(data)
		if err != nil {
			return
		}
		again, err := unmarshalReport(r.marshal())
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

// A random run of workers that die between acknowledging and settling, before
// the settling is reported, or not at all: each record counts once.
func TestEachRecordCountsOnce(t *testing.T) {
	for seed := range uint64(2000) {
		checkTally(t, rand.New(rand.NewPCG(seed, 0)), seed)
	}
}

func checkTally(t *testing.T, rng *rand.Rand, seed uint64) {
	t.Helper()
	total := gearsfs.Seq(1 + rng.IntN(60))
	ready := make([]gearsfs.Seq, 0, total)
	for seq := gearsfs.Seq(1); seq <= total; seq++ {
		ready = append(ready, seq)
	}
	var got tally
	var unsaid []workID
	var held [][]gearsfs.Seq // leased by workers that have acknowledged and not settled
	fence := uint64(0)
	for len(ready) > 0 || len(held) > 0 {
		if len(ready) == 0 || rng.IntN(4) == 0 && len(held) > 0 { // one of those dies
			ready = append(held[0], ready...)
			held = held[1:]
			continue
		}
		n := 1 + rng.IntN(len(ready))
		batch := append([]gearsfs.Seq(nil), ready[:n]...)
		ready = ready[n:]
		fence++
		w := &work{ID: workID{fence, batch[0]}}
		for _, seq := range batch {
			w.Spans = append(w.Spans, span{seq, seq})
			w.Counts = w.Counts.Add(Counts{Lines: 1, Bytes: uint64(seq)})
		}
		w.Words = []Frequency{{"w", uint64(n)}}
		r := &report{Work: w, Settled: unsaid}
		got.report(r)
		unsaid = nil
		if rng.IntN(8) == 0 {
			got.report(r) // a retry
		}
		switch rng.IntN(3) {
		case 0:
			held = append(held, batch)
		case 1:
			unsaid = append(unsaid, w.ID) // settled, and said with the next report
		case 2: // settled, and never said
		}
	}
	got.finish()
	want := Counts{Lines: uint64(total), Bytes: uint64(total) * uint64(total+1) / 2}
	require.Equal(t, want, got.total, "seed %d", seed)
	require.Equal(t, []Frequency{{"w", uint64(total)}}, got.words.all, "seed %d", seed)
	require.True(t, got.added.all(total), "seed %d", seed)
	require.False(t, got.added.all(total+1), "seed %d", seed)
}
