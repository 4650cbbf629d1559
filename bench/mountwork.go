package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// caches is what is known before a work begins.
type caches int

const (
	warm      caches = iota // all that the works before it have left
	coldMount               // the mount is a new one, the disk's files are in memory
	cold                    // nothing is in memory, as after a reboot; what is on disks stays
)

// mountWork is a row: something that is done in a mounted file system and gives a
// figure.
type mountWork struct {
	name, unit string
	aim        string // of the ratios to the loopback example, by requests and as it is
	juice      string // of the ratio to JuiceFS
	many       string // of the ratio of three nodes to one; "" where they are not measured
	caches     caches
	run        func(ctx context.Context, dir string) (float64, error)
}

const (
	bigBytes   = 256 << 20
	smallCount = 5000
	syncCount  = 500
)

// mountWorks are done in this order; tar is of smallCount files.
func mountWorks(tar string) []mountWork {
	return []mountWork{
		{"sequential write 1 MiB, fsync", "MB/s", ">= 0.85", ">= 1.3", ">= 0.4", warm, sequentialWrite},
		{"sequential read, cold", "MB/s", ">= 0.85", "none", "", cold, sequentialRead},
		{"sequential read, warm", "MB/s", ">= 1.0", "none", "", warm, sequentialRead},
		{"random read 4 KiB, cold", "op/s", ">= 0.7", ">= 2", "", cold, randomRead},
		{"random write 4 KiB", "op/s", ">= 0.7", ">= 10", "none", warm, randomWrite},
		{"random write 4 KiB, fsync each", "op/s", ">= 0.5", "none", "", warm, randomSynced},
		{"untar 5,000 files", "s", "<= 1.3", "<= 0.33", "<= 3", warm, func(ctx context.Context, dir string) (float64, error) {
			return took(ctx, "tar", "-xf", tar, "-C", dir)
		}},
		{"cat all, cold", "s", "<= 1.3", "<= 0.33", "", cold, catAll},
		{"ls -lR, cold", "s", "<= 1.2", "none", "", cold, listAll},
		{"ls -lR, warm", "s", "<= 1.2", "none", "", warm, listAll},
		{"stat", "/s", ">= 0.8", "none", "", coldMount, statAll},
		{"create", "/s", "none", "none", "", warm, createAll},
		{"rename", "/s", ">= 0.8", "none", "", warm, renameAll},
		{"unlink", "/s", ">= 0.8", "none", "", warm, unlinkAll},
		{"rm -rf", "s", "<= 1.3", "<= 0.33", "", warm, func(ctx context.Context, dir string) (float64, error) {
			return took(ctx, "rm", "-rf", filepath.Join(dir, "tree"))
		}},
		{memoryRow, "MiB", "<= 256 MiB", "none", "<= 256 MiB", warm, nil},
		{peakRow, "MiB", "none", "none", "none", warm, nil},
	}
}

// smallFiles makes a tar of 5,000 files of 0 to 8 KiB in 100 directories.
func (b *bench) smallFiles(ctx context.Context) (string, error) {
	root := filepath.Join(b.dir, "tree")
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 8<<10)
	for i := range smallCount {
		dir := filepath.Join(root, fmt.Sprintf("d%02d", i%100))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%04d", i)), data[:rnd.IntN(len(data))], 0o644); err != nil {
			return "", err
		}
	}
	tar := root + ".tar"
	return tar, exec.CommandContext(ctx, "tar", "-cf", tar, "-C", b.dir, "tree").Run()
}

// took runs a program and returns the seconds.
func took(ctx context.Context, name string, args ...string) (float64, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	begin := time.Now()
	err := cmd.Run()
	return time.Since(begin).Seconds(), err
}

func listAll(ctx context.Context, dir string) (float64, error) {
	return took(ctx, "ls", "-lR", filepath.Join(dir, "tree"))
}

// bigFile opens the large file and calls use with it and the time that it begins.
func bigFile(dir string, flags int, use func(f *os.File, begin time.Time) (float64, error)) (figure float64, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "big"), flags, 0o644)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return use(f, time.Now())
}

func sequentialWrite(_ context.Context, dir string) (float64, error) {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(rand.Uint32())
	}
	return bigFile(dir, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, func(f *os.File, begin time.Time) (float64, error) {
		for range bigBytes / len(buf) {
			if _, err := f.Write(buf); err != nil {
				return 0, err
			}
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		return bigBytes / 1e6 / time.Since(begin).Seconds(), nil
	})
}

func sequentialRead(_ context.Context, dir string) (float64, error) {
	buf := make([]byte, 1<<20)
	return bigFile(dir, os.O_RDONLY, func(f *os.File, begin time.Time) (float64, error) {
		for range bigBytes / len(buf) {
			if _, err := io.ReadFull(f, buf); err != nil {
				return 0, err
			}
		}
		return bigBytes / 1e6 / time.Since(begin).Seconds(), nil
	})
}

// atRandom calls do with the places of n pages of the large file.
func atRandom(n int, seed uint64, begin time.Time, do func(off int64) error) (float64, error) {
	rnd := rand.New(rand.NewPCG(seed, 4))
	for range n {
		if err := do(rnd.Int64N(bigBytes/4096) * 4096); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

func randomRead(_ context.Context, dir string) (float64, error) {
	buf := make([]byte, 4<<10)
	return bigFile(dir, os.O_RDONLY, func(f *os.File, begin time.Time) (float64, error) {
		return atRandom(smallCount, 2, begin, func(off int64) error { _, err := f.ReadAt(buf, off); return err })
	})
}

func randomWrite(_ context.Context, dir string) (float64, error) {
	buf := make([]byte, 4<<10)
	return bigFile(dir, os.O_WRONLY, func(f *os.File, begin time.Time) (float64, error) {
		return atRandom(smallCount, 3, begin, func(off int64) error { _, err := f.WriteAt(buf, off); return err })
	})
}

func randomSynced(_ context.Context, dir string) (float64, error) {
	buf := make([]byte, 4<<10)
	return bigFile(dir, os.O_WRONLY, func(f *os.File, begin time.Time) (float64, error) {
		return atRandom(syncCount, 5, begin, func(off int64) error {
			_, err := f.WriteAt(buf, off)
			return errors.Join(err, f.Sync())
		})
	})
}

// catAll reads every small file, in the order of a walk.
func catAll(_ context.Context, dir string) (float64, error) {
	begin, buf := time.Now(), make([]byte, 64<<10)
	err := filepath.WalkDir(filepath.Join(dir, "tree"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buf)
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return errors.Join(err, f.Close())
	})
	return time.Since(begin).Seconds(), err
}

// each calls do with the numbers of the small files and returns how many a second.
func each(do func(i int) error) (float64, error) {
	begin := time.Now()
	for i := range smallCount {
		if err := do(i); err != nil {
			return 0, err
		}
	}
	return smallCount / time.Since(begin).Seconds(), nil
}

func statAll(_ context.Context, dir string) (float64, error) {
	return each(func(i int) error {
		_, err := os.Lstat(filepath.Join(dir, "tree", fmt.Sprintf("d%02d", i%100), fmt.Sprintf("f%04d", i)))
		return err
	})
}

// oneDir is where files are made, renamed and removed.
func oneDir(dir string, name string, i int) string {
	return filepath.Join(dir, "one", fmt.Sprint(name, i))
}

func createAll(_ context.Context, dir string) (float64, error) {
	if err := os.Mkdir(filepath.Join(dir, "one"), 0o755); err != nil {
		return 0, err
	}
	return each(func(i int) error {
		f, err := os.Create(oneDir(dir, "f", i))
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func renameAll(_ context.Context, dir string) (float64, error) {
	return each(func(i int) error { return os.Rename(oneDir(dir, "f", i), oneDir(dir, "g", i)) })
}

func unlinkAll(_ context.Context, dir string) (float64, error) {
	return each(func(i int) error { return os.Remove(oneDir(dir, "g", i)) })
}
