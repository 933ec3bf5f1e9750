source "virtualbox-iso" "golden" {
  iso_url              = var.source
  iso_checksum         = var.checksum
  boot_command         = var.boot_command
  boot_wait            = "10s"
  http_directory       = var.http_directory
  guest_os_type        = "RedHat_64"
  guest_additions_mode = "disable"
  cpus                 = var.cpus
  memory               = var.memory
  disk_size            = var.disk
  hard_drive_interface = "sata"
  hard_drive_discard   = true
  headless             = true
  format               = "ovf"
  output_directory     = var.output
  vm_name              = var.name
  communicator         = "ssh"
  ssh_username         = "root"
  ssh_private_key_file = var.key
  ssh_timeout          = var.seconds
  shutdown_command     = "systemctl poweroff"
  shutdown_timeout     = "10m"
}
