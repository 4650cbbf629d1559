package dgm_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/persist"
)

// BenchmarkLocal is what a mount asks of its node, one call after the other,
// without a socket and without waiting for the disk.
func BenchmarkLocal(b *testing.B) {
	page, large := make([]byte, 4096), make([]byte, 1<<20)
	for _, bench := range []struct {
		name string
		op   func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error
	}{
		{"GetAttr", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			_, err := m.GetAttr(ctx, ino)
			return err
		}},
		{"OpenRelease", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			if _, err := m.Open(ctx, ino); err != nil {
				return err
			}
			return m.Release(ctx, ino)
		}},
		{"Write4K", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			_, err := m.Write(ctx, ino, 0, page)
			return err
		}},
		{"Read4K", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			_, err := m.Read(ctx, ino, 64<<10, len(page), page)
			return err
		}},
		{"Read1M", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			_, err := m.Read(ctx, ino, 0, len(large), large)
			return err
		}},
		{"Chmod", func(ctx context.Context, m dgm.Manager, ino gearsfs.Ino) error {
			mode := uint32(0o600)
			_, err := m.SetAttr(ctx, ino, dgm.SetAttr{Mode: &mode})
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			data, err := persist.Open(b.TempDir(), persist.Options{Create: true, Name: "bench"})
			require.NoError(b, err)
			vol, err := dgm.OpenVolume(b.Context(), dgm.VolumeConfig{Data: data})
			require.NoError(b, err)
			defer vol.Close()
			m, err := vol.Local(client)
			require.NoError(b, err)
			defer m.Close()
			attr, err := m.Make(b.Context(), gearsfs.RootIno, "f", dgm.Make{Mode: 0o100644})
			require.NoError(b, err)
			_, err = m.Write(b.Context(), attr.Ino, 0, large)
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.op(b.Context(), m, attr.Ino); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
