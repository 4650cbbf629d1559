package dgmtest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

type job struct {
	Name string
	N    int
}

// typed: values go in and come out, and records of another type stay.
func typed(t *testing.T, s *suite) {
	jobs := dgm.StreamOf(s.m, queue, "k", dgm.JSON[job]("job"))
	_, err := jobs.Put(s.ctx, job{"a", 1}, job{"b", 2})
	require.NoError(t, err)
	seen, err := jobs.Peek(s.ctx, 1)
	require.NoError(t, err)
	require.Equal(t, job{"b", 2}, seen.Value)
	require.Equal(t, "job", seen.Record.Type)
	got, err := jobs.Take(s.ctx)
	require.NoError(t, err)
	require.Equal(t, job{"a", 1}, got)
	_, err = jobs.Update(s.ctx, job{"c", 3})
	require.NoError(t, err)

	texts := dgm.StreamOf(s.m, queue, "k", dgm.Text("text"))
	_, err = texts.Take(s.ctx)
	require.ErrorIs(t, err, gearsfs.ErrType)
	require.ErrorContains(t, err, `"job"`)
	_, err = texts.Peek(s.ctx, 0)
	require.ErrorIs(t, err, gearsfs.ErrType)
	require.NoError(t, jobs.Declare(s.ctx))
	_, err = texts.Put(s.ctx, "x")
	require.ErrorIs(t, err, gearsfs.ErrType)
	leased, err := jobs.Lease(s.ctx, dgm.Take{})
	require.NoError(t, err)
	require.Equal(t, job{"c", 3}, leased.Value)
	require.NoError(t, s.m.Settle(s.ctx, dgm.Settle{Receipts: []gearsfs.Receipt{*leased.Record.Receipt}}))
	s.empty(s.m, "k")
}
