# From an ISO, or from a disk: then `drives` are the disk itself and what gives it an identity.
source "qemu" "golden" {
  iso_url              = var.source
  iso_checksum         = var.checksum
  disk_image           = var.disk_image
  use_backing_file     = false
  skip_compaction      = true
  boot_command         = var.boot_command
  boot_wait            = var.disk_image ? "1s" : "10s"
  http_directory       = var.http_directory
  accelerator          = var.accelerator
  machine_type         = "pc"
  cpus                 = var.cpus
  memory               = var.memory
  disk_size            = "${var.disk}M"
  format               = "qcow2"
  disk_interface       = "virtio"
  disk_cache           = "unsafe"
  disk_discard         = "unmap"
  disk_detect_zeroes   = "unmap"
  net_device           = "virtio-net"
  headless             = true
  output_directory     = var.output
  vm_name              = "${var.name}.qcow2"
  communicator         = "ssh"
  ssh_username         = "root"
  ssh_private_key_file = var.key
  ssh_timeout          = var.seconds
  # While the machine boots, QEMU's forwarding takes connections that nobody answers yet.
  ssh_handshake_attempts = 1000
  shutdown_command       = "systemctl poweroff"
  shutdown_timeout       = "10m"
  qemuargs = concat(
    [["-cpu", var.cpu], ["-device", "virtio-rng-pci"], ["-serial", "file:${var.console}"]],
    [for drive in var.drives : ["-drive", drive]],
  )
}
