package dgmtest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

func limits(bytes, inodes uint64) dgm.SetQuota { return dgm.SetQuota{Bytes: &bytes, Inodes: &inodes} }

// counted waits until a directory's quota is counted. It asks again and again:
// the count announces nothing.
func (s *suite) counted(dir gearsfs.Ino) gearsfs.Quota {
	s.t.Helper()
	for {
		q, err := s.m.Quota(s.ctx, dir)
		require.NoError(s.t, err)
		if !q.Counting {
			return q
		}
	}
}

func quotas(t *testing.T, s *suite) {
	d := s.make(gearsfs.RootIno, "d", dirMode)
	f := s.make(d.Ino, "f", fileMode)
	_, err := s.m.Quota(s.ctx, d.Ino)
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	require.NoError(t, s.m.SetQuota(s.ctx, d.Ino, limits(100<<10, 4)))
	require.Equal(t, gearsfs.Quota{Bytes: 100 << 10, Inodes: 4, InodesUsed: 2}, s.counted(d.Ino))

	_, err = s.m.Write(s.ctx, f.Ino, 0, make([]byte, 90<<10))
	require.NoError(t, err)
	_, err = s.m.Write(s.ctx, f.Ino, 90<<10, make([]byte, 20<<10))
	require.ErrorIs(t, err, gearsfs.ErrQuota)
	_, err = s.m.Append(s.ctx, f.Ino, make([]byte, 20<<10))
	require.ErrorIs(t, err, gearsfs.ErrQuota)
	queue := gearsfs.At("/d/queue")
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: make([]byte, 10<<10)}}})
	require.NoError(t, err)
	_, err = s.m.Put(s.ctx, dgm.Put{File: queue, Key: "k", Records: []gearsfs.NewRecord{{Data: []byte("x")}}})
	require.ErrorIs(t, err, gearsfs.ErrQuota)
	s.make(d.Ino, "sub", dirMode)
	_, err = s.m.Make(s.ctx, d.Ino, "g", dgm.Make{Mode: fileMode})
	require.ErrorIs(t, err, gearsfs.ErrQuota)

	usage, err := s.m.StatFS(s.ctx, f.Ino)
	require.NoError(t, err)
	require.Equal(t, gearsfs.Usage{BytesTotal: 100 << 10, Inodes: 4}, usage)
	_, err = s.m.Take(s.ctx, dgm.Take{File: queue, Keys: []gearsfs.Key{"k"}})
	require.NoError(t, err)
	require.NoError(t, s.m.Unlink(s.ctx, d.Ino, "queue"))
	usage, err = s.m.StatFS(s.ctx, d.Ino)
	require.NoError(t, err)
	require.Equal(t, gearsfs.Usage{BytesTotal: 100 << 10, BytesFree: 10 << 10, BytesAvail: 10 << 10, Inodes: 3, InodesFree: 1}, usage)

	g := s.make(gearsfs.RootIno, "g", fileMode)
	_, err = s.m.Link(s.ctx, g.Ino, d.Ino, "g")
	require.ErrorIs(t, err, gearsfs.ErrCross)
	require.ErrorIs(t, s.m.SetQuota(s.ctx, f.Ino, limits(1, 1)), gearsfs.ErrNotDir)
	require.NoError(t, s.m.SetQuota(s.ctx, d.Ino, dgm.SetQuota{Remove: true}))
	require.ErrorIs(t, s.m.SetQuota(s.ctx, d.Ino, dgm.SetQuota{Remove: true}), gearsfs.ErrNotFound)
	_, err = s.m.Append(s.ctx, f.Ino, make([]byte, 20<<10))
	require.NoError(t, err)
}

// quotaIsCounted sets a quota on more than one step counts.
func quotaIsCounted(t *testing.T, s *suite) {
	d := s.make(gearsfs.RootIno, "d", dirMode)
	const files = 1100
	for i := range files {
		s.make(d.Ino, fmt.Sprint(i), fileMode)
	}
	require.NoError(t, s.m.SetQuota(s.ctx, d.Ino, limits(0, files)))
	require.EqualValues(t, files+1, s.counted(d.Ino).InodesUsed)
	_, err := s.m.Make(s.ctx, d.Ino, "one more", dgm.Make{Mode: fileMode})
	require.ErrorIs(t, err, gearsfs.ErrQuota)
}
