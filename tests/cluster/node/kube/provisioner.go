// Gives every claim of our storage class a directory of this one node, and takes it away with the volume.
//
// It stands on client-go alone: the usual library for provisioners would move gRPC and the telemetry modules past
// the versions that this Kubernetes release was tested with, for features (leader election, retries across nodes)
// that a single node does not need.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	// The controller manager writes this on a claim whose class names a provisioner outside of itself.
	wantedFrom = "volume.kubernetes.io/storage-provisioner"
	// It leaves the deletion of a volume to whoever is named here.
	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

type provisioner struct {
	name, directory string
	client          kubernetes.Interface
}

func newProvisionerCommand() *cobra.Command {
	var kubeconfig string
	p := &provisioner{}
	command := &cobra.Command{
		Use:          "provisioner",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			if p.client, err = kubernetes.NewForConfig(config); err != nil {
				return err
			}
			return p.run(command.Context())
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API")
	command.Flags().StringVar(&p.name, "name", "", "the provisioner that storage classes name")
	command.Flags().StringVar(&p.directory, "directory", "", "where the volumes' directories are made")
	return command
}

// One worker over one queue: a key is "claim/NAMESPACE/NAME" or "volume//NAME".
type key struct{ kind, namespace, name string }

func (p *provisioner) run(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background()
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](50*time.Millisecond, 10*time.Second))
	factory := informers.NewSharedInformerFactory(p.client, 5*time.Minute)
	add := func(object any) {
		switch o := object.(type) {
		case *core.PersistentVolumeClaim:
			queue.Add(key{"claim", o.Namespace, o.Name})
		case *core.PersistentVolume:
			queue.Add(key{"volume", "", o.Name})
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, object any) { add(object) }}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Core().V1().PersistentVolumeClaims().Informer(),
		factory.Core().V1().PersistentVolumes().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go func() { <-ctx.Done(); queue.ShutDown() }()
	for {
		k, stop := queue.Get()
		if stop {
			return nil
		}
		pass := p.claim
		if k.kind == "volume" {
			pass = p.volume
		}
		if err := pass(ctx, k); err != nil {
			klog.ErrorS(err, "will try again", "kind", k.kind, "namespace", k.namespace, "name", k.name)
			queue.AddRateLimited(k)
		} else {
			queue.Forget(k)
		}
		queue.Done(k)
	}
}

func (p *provisioner) claim(ctx context.Context, k key) error {
	claim, err := p.client.CoreV1().PersistentVolumeClaims(k.namespace).Get(ctx, k.name, meta.GetOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Annotations[wantedFrom] != p.name || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := p.client.StorageV1().StorageClasses().Get(ctx, *claim.Spec.StorageClassName, meta.GetOptions{})
	if err != nil {
		return err
	}
	volume := p.volumeFor(claim, class)
	path := volume.Spec.HostPath.Path
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	// Pods run as users that no host knows, and kubelet leaves a hostPath's owner alone; the umask has cut MkdirAll.
	if err := os.Chmod(path, 0o777); err != nil {
		return err
	}
	if _, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{}); errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (p *provisioner) volumeFor(claim *core.PersistentVolumeClaim, class *storage.StorageClass) *core.PersistentVolume {
	name := "pvc-" + string(claim.UID) // from the claim's identity, so that a second try finds the first
	reclaim, directory := core.PersistentVolumeReclaimDelete, core.HostPathDirectory
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: p.name}},
		Spec: core.PersistentVolumeSpec{
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: reclaim,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				HostPath: &core.HostPathVolumeSource{Path: filepath.Join(p.directory, name), Type: &directory},
			},
		},
	}
}

func (p *provisioner) volume(ctx context.Context, k key) error {
	volume, err := p.client.CoreV1().PersistentVolumes().Get(ctx, k.name, meta.GetOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	ours := volume.Annotations[provisionedBy] == p.name && volume.Spec.HostPath != nil
	if !ours || volume.Status.Phase != core.VolumeReleased || volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	path := volume.Spec.HostPath.Path
	if filepath.Dir(path) != filepath.Clean(p.directory) {
		return fmt.Errorf("%s is outside of %s", path, p.directory)
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	err = p.client.CoreV1().PersistentVolumes().Delete(ctx, k.name, meta.DeleteOptions{Preconditions: &meta.Preconditions{UID: &volume.UID}})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}
