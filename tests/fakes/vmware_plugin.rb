# frozen_string_literal: true

# Stands for the plugin vagrant-vmware-desktop, which is in no package index: a provider of its
# name whose settings are those that the plugin documents, and no others.
# https://developer.hashicorp.com/vagrant/docs/providers/vmware/configuration
class FakeVmware < Vagrant.plugin("2")
  name "fake vmware_desktop"

  class Settings < Vagrant.plugin("2", :config)
    attr_accessor :base_address, :base_mac, :clone_directory, :enable_vmrun_ip_lookup, :functional_hgfs,
      :unmount_default_hgfs, :gui, :linked_clone, :nat_device, :port_forward_network_pause,
      :allowlist_verified, :ssh_info_public
    attr_reader :vmx

    def initialize
      @vmx = {}
    end

    def validate(_machine)
      wrong = vmx.reject { |key, value| key.is_a?(String) && value.is_a?(String) }
      { "vmware" => wrong.map { |key, value| "vmx #{key} is no text: #{value.inspect}" } }
    end
  end

  class Provider < Vagrant.plugin("2", :provider)
    def state
      Vagrant::MachineState.new(:not_created, "not created", "")
    end
  end

  config("vmware_desktop", :provider) { Settings }
  provider("vmware_desktop", parallel: false) { Provider }
end
