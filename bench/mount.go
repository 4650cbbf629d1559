package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// mounts compares the mount with go-fuse's loopback example.
func mounts(ctx context.Context, b *bench) error {
	if err := b.build(ctx, "github.com/hanwen/go-fuse/v2/example/loopback"); err != nil {
		return err
	}
	tar, err := b.smallFiles(ctx)
	if err != nil {
		return err
	}
	type work struct {
		name string
		unit string
		run  func(dir string) (float64, error)
	}
	works := []work{
		{"untar 5,000 files", "files/s", func(dir string) (float64, error) { return untar(ctx, tar, dir) }},
		{"sequential write 1 MiB, fsync", "MB/s", sequentialWrite},
		{"sequential read 1 MiB", "MB/s", sequentialRead},
		{"random write 4 KiB", "op/s", randomWrite},
	}
	ours, theirs := make([][]float64, len(works)), make([][]float64, len(works))
	for range b.rounds {
		for _, side := range []struct {
			figures [][]float64
			with    func(ctx context.Context, f func(dir string) error) error
		}{{ours, b.withGears}, {theirs, b.withLoopback}} {
			err := side.with(ctx, func(dir string) error {
				for i, w := range works {
					figure, err := w.run(dir)
					if err != nil {
						return fmt.Errorf("%s: %w", w.name, err)
					}
					side.figures[i] = append(side.figures[i], figure)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	fmt.Println("the mount, and go-fuse's loopback example on the same disk")
	for i, w := range works {
		row(w.name, w.unit, ours[i], theirs[i])
	}
	return nil
}

func (b *bench) withGears(ctx context.Context, f func(dir string) error) error {
	work, err := os.MkdirTemp(b.dir, "mount-")
	if err != nil {
		return err
	}
	dir := filepath.Join(work, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	p, err := b.startProcess(ctx, "mounted on", "gearsfs", "mount", "--data", filepath.Join(work, "data"), dir)
	if err != nil {
		return err
	}
	return errors.Join(f(dir), p.stop())
}

func (b *bench) withLoopback(_ context.Context, f func(dir string) error) error {
	work, err := os.MkdirTemp(b.dir, "loopback-")
	if err != nil {
		return err
	}
	dir, below := filepath.Join(work, "mnt"), filepath.Join(work, "below")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(below, 0o755)); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(b.bin, "loopback"), "-allow-other", dir, below)
	if err := cmd.Start(); err != nil {
		return err
	}
	for !mounted(dir) {
		time.Sleep(time.Millisecond)
	}
	err = f(dir)
	return errors.Join(err, syscall.Unmount(dir, 0), cmd.Wait())
}

// mounted says whether a file system of its own is at dir.
func mounted(dir string) bool {
	var here, above syscall.Stat_t
	return syscall.Stat(dir, &here) == nil && syscall.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// smallFiles makes a tar of 5,000 files of 0 to 8 KiB in 100 directories.
func (b *bench) smallFiles(ctx context.Context) (string, error) {
	root := filepath.Join(b.dir, "tree")
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 8<<10)
	for i := range 5000 {
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

func untar(ctx context.Context, tar, dir string) (float64, error) {
	begin := time.Now()
	err := exec.CommandContext(ctx, "tar", "-xf", tar, "-C", dir).Run()
	return 5000 / time.Since(begin).Seconds(), err
}

const fileBytes = 256 << 20

func sequentialWrite(dir string) (rate float64, err error) {
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(rand.Uint32())
	}
	begin := time.Now()
	for range fileBytes / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return fileBytes / 1e6 / time.Since(begin).Seconds(), nil
}

// sequentialRead reads what the kernel of the mount has forgotten.
func sequentialRead(dir string) (rate float64, err error) {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 1<<20)
	begin := time.Now()
	for range fileBytes / len(buf) {
		if _, err := f.Read(buf); err != nil {
			return 0, err
		}
	}
	return fileBytes / 1e6 / time.Since(begin).Seconds(), nil
}

func randomWrite(dir string) (rate float64, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "big"), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	const writes = 5000
	buf := make([]byte, 4<<10)
	rnd := rand.New(rand.NewPCG(3, 4))
	begin := time.Now()
	for range writes {
		if _, err := f.WriteAt(buf, rnd.Int64N(fileBytes/4096)*4096); err != nil {
			return 0, err
		}
	}
	return writes / time.Since(begin).Seconds(), nil
}
