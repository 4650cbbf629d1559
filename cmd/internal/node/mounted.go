package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/mount"
)

// unmountTimeout bounds how long the end waits for the programs that use a
// mount; then it is detached.
const unmountTimeout = 10 * time.Second

// RunMount shows the volume of m in dir, calls mounted once it is there, and
// unmounts when ctx ends, which is no error, or when the node breaks. It also
// returns when somebody else unmounts it.
func RunMount(ctx context.Context, m dgm.Manager, dir string, o mount.Options, broken <-chan error, mounted func() error) error {
	shown, err := mount.New(ctx, m, dir, o)
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { // ends with the mount, or the process
		shown.Wait()
		close(gone)
	}()
	err = mounted()
	if err == nil {
		select {
		case <-ctx.Done():
		case <-gone:
			return nil
		case err = <-broken:
			err = fmt.Errorf("the node can't go on: %w", err)
		}
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	left := shown.Unmount(ending)
	if errors.Is(left, mount.ErrInUse) {
		return err // the process ends now, and with it what is left of the mount
	}
	if left == nil {
		<-gone
	}
	return errors.Join(err, left)
}
